#include "run/layer_reader.h"

#include "quant/activations.h"
#include "run/beside.h"
#include "tensor/device.h"

namespace aqhost {

Layer open_layer(const Source& source, const Model& model, int32_t index, int64_t length,
                 const at::TensorOptions& options) {
  Layer layer(source, model, index, length, options);
  for (const Module& module : model.modules()) {
    if (module.key.layer != index) continue;
    const auto [format, global] = source.input_rounding(module.name);
    if (!format) continue;
    const auto rounder = std::make_shared<ActivationRounder>(format);
    rounder->set_global(global);
    layer.set_input_rounding(module, [rounder](const at::Tensor& x) { return (*rounder)(x); });
  }
  return layer;
}

LayerReader::LayerReader(at::Device device, int32_t count, Open open)
    : device_(device), count_(count), open_(std::move(open)) {}

LayerReader::~LayerReader() {
  try {
    synchronize(device_);
  } catch (const std::exception&) {
    // a failure on the device was reported where its result was used
  }
}

std::unique_ptr<Layer> LayerReader::read(int32_t turn) const {
  std::unique_ptr<Layer> layer;
  on_own_queue(device_, [&] { layer = std::make_unique<Layer>(open_(turn)); });
  return layer;
}

Layer& LayerReader::next() {
  synchronize(device_);  // before the layer's memory is used for another
  layer_.reset();
  layer_ = ahead_.valid() ? ahead_.get() : read(turn_);
  turn_++;
  if (turn_ < count_ && works_beside(device_))
    ahead_ = std::async(std::launch::async, [this, turn = turn_] { return read(turn); });
  return *layer_;
}

}  // namespace aqhost
