#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "checkpoint/dtype.h"

namespace aqhost {

struct TensorInfo {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;

  int64_t numel() const {  // checked against overflow when a file is opened
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    return n;
  }
};

/// The dense tensors a model is made of, by name, however the files hold them: a plain checkpoint
/// (Reader), or a quantized export seen as what it stands for (export/decoded_checkpoint.h).
/// All functions may be called from any thread.
class Source {
 public:
  virtual ~Source() = default;

  /// config.json, and the folder it is in (for messages, tokenizer and side files).
  virtual const Json& config() const = 0;
  virtual const std::string& directory() const = 0;

  /// Every tensor, sorted by name.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  /// nullptr if there is no such tensor. Valid as long as this.
  virtual const TensorInfo* find(std::string_view name) const = 0;

  /// out.size() elements of the flattened tensor from `begin` on, as float32. Error if there is no
  /// such tensor, if its type is no float (F16, BF16, F32), or if a value is NaN or infinite.
  virtual void read_f32(std::string_view name, int64_t begin, std::span<float> out) const = 0;

  /// out.size() bytes of a tensor from byte `begin` on, as they are stored; false if it is not
  /// stored as it is read. `begin` and size within the tensor.
  virtual bool read_stored(std::string_view /*name*/, int64_t /*begin*/,
                           std::span<std::byte> /*out*/) const {
    return false;
  }

  /// The file that a tensor is in, or the folder if that is not known; for messages.
  virtual std::string file_of(std::string_view /*name*/) const { return directory(); }

  /// Error, naming the file, if one of the tensors' files was changed since it was opened: to be
  /// asked before what was made of them is given out.
  virtual void check_unchanged() const {}
};

}  // namespace aqhost
