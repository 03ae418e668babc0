#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <future>
#include <memory>

#include "checkpoint/source.h"
#include "forward/layer.h"
#include "plugin/model.h"

namespace aqhost {

/// Layer `index` of a checkpoint for sequences of up to `length` tokens; its modules round their
/// inputs where an export of aqhost says so. `model` must outlive the result.
Layer open_layer(const Source& source, const Model& model, int32_t index, int64_t length,
                 const at::TensorOptions& options = at::kFloat);

/// Gives layers one after another. For a GPU, the next layer is read and copied there while the
/// caller works on the current one. On the CPU, where both would need the same memory and cores, a
/// layer is read when it is asked for. Used by one thread only.
class LayerReader {
 public:
  /// Reads the layer of one turn. It may be called from any thread.
  using Open = std::function<Layer(int32_t turn)>;

  /// Turns 0 to count - 1, with layers on `device`.
  LayerReader(at::Device device, int32_t count, Open open);
  ~LayerReader();

  /// The layer of the next turn. The layer of the turn before is freed first, so it must not be in
  /// use any more.
  Layer& next();

 private:
  std::unique_ptr<Layer> read(int32_t turn) const;

  const at::Device device_;
  const int32_t count_;
  const Open open_;
  int32_t turn_ = 0;
  std::unique_ptr<Layer> layer_;
  std::future<std::unique_ptr<Layer>> ahead_;
};

}  // namespace aqhost
