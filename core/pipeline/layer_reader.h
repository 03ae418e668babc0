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

/// The layers of a model one after another. For a GPU the next one is read and copied there while
/// the last one given out is worked on; on the CPU, where both would want the same memory and
/// cores, it is read when it is asked for. One thread.
class LayerReader {
 public:
  /// Type and device of a layer.
  using OptionsOf = std::function<at::TensorOptions(int32_t layer)>;

  /// Layers 0 to `last`, for sequences of at most `seq_len`.
  LayerReader(const Source& source, const Model& model, int64_t seq_len, int32_t last,
              OptionsOf options_of);

  std::unique_ptr<Layer> next();

 private:
  std::unique_ptr<Layer> read(int32_t index) const;

  const Source& source_;
  const Model& model_;
  const int64_t seq_len_;
  const int32_t last_;
  const OptionsOf options_of_;
  int32_t index_ = 0;
  std::future<std::unique_ptr<Layer>> ahead_;
};

}  // namespace aqhost
