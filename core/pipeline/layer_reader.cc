#include "pipeline/layer_reader.h"

#include "pipeline/beside.h"
#include "tensor/device.h"

namespace aqhost {

LayerReader::LayerReader(const Source& source, const Model& model, int64_t seq_len, int32_t last,
                         OptionsOf options_of)
    : source_(source),
      model_(model),
      seq_len_(seq_len),
      last_(last),
      options_of_(std::move(options_of)) {}

std::unique_ptr<Layer> LayerReader::read(int32_t index) const {
  const at::TensorOptions options = options_of_(index);
  std::unique_ptr<Layer> layer;
  on_own_queue(options.device(),
               [&] { layer = std::make_unique<Layer>(source_, model_, index, seq_len_, options); });
  return layer;
}

std::unique_ptr<Layer> LayerReader::next() {
  std::unique_ptr<Layer> layer = ahead_.valid() ? ahead_.get() : read(index_);
  index_++;
  if (index_ <= last_ && works_beside(options_of_(index_).device()))
    ahead_ = std::async(std::launch::async, [this, index = index_] { return read(index); });
  return layer;
}

}  // namespace aqhost
