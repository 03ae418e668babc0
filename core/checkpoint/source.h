#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
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

  int64_t numel() const {  // overflow is checked when a file is opened
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    return n;
  }
  /// The number of bytes of all elements.
  int64_t nbytes() const { return numel() * dtype_size(dtype); }
};

class Format;           // plugin/format.h
class SafetensorsFile;  // checkpoint/safetensors.h

/// How a checkpoint says that the input of a module is rounded.
struct RoundedInput {
  std::shared_ptr<const Format> format;  // null: it is not rounded
  float global = 1;                      // the scale of all tokens; 1 if the format has none
};

/// How much space a checkpoint takes.
struct StoredSize {
  int64_t bytes = 0;  // of all tensors
  /// Of the quantized modules, with their scales; in a plain checkpoint, of all tensors.
  int64_t weight_bytes = 0, weights = 0;

  double bits_per_weight() const;
};

/// The dense tensors of a model by name, independent of how files store them. It is a plain
/// checkpoint (Reader), or one whose quantized tensors are decoded: by a format plugin
/// (export/decoded_checkpoint.h), or without one (dequantized_source.h). All functions may be
/// called from any thread.
class Source {
 public:
  virtual ~Source() = default;

  /// config.json, and the folder that contains it (for messages, the tokenizer and side files).
  virtual const Json& config() const = 0;
  virtual const std::string& directory() const = 0;

  /// Every tensor, sorted by name.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  /// Returns nullptr if there is no such tensor. Valid as long as this object.
  virtual const TensorInfo* find(std::string_view name) const = 0;

  /// Reads out.size() elements of the flattened tensor from element `begin` on, as float32. Throws
  /// an Error if there is no such tensor, if its type is not F16, BF16 or F32, or if a value is NaN
  /// or infinite.
  virtual void read_f32(std::string_view name, int64_t begin, std::span<float> out) const = 0;

  /// Reads out.size() bytes of a tensor from byte `begin` on, as they are stored. Returns false if
  /// the tensor is not stored in the form in which it is read. The range must lie within the
  /// tensor.
  virtual bool read_stored(std::string_view /*name*/, int64_t /*begin*/,
                           std::span<std::byte> /*out*/) const {
    return false;
  }
  /// Does the same, but throws an Error if the tensor is not stored in that form.
  void read_bytes(std::string_view name, int64_t begin, std::span<std::byte> out) const;
  /// All bytes of a tensor, read by read_bytes(). Throws an Error if there is no such tensor.
  std::vector<std::byte> bytes(std::string_view name) const;

  /// How the input of a module is rounded when the checkpoint is run.
  virtual RoundedInput input_rounding(std::string_view /*module*/) const { return {}; }
  virtual StoredSize stored_size() const;
  /// The bytes that a tensor takes in the files, with its scales. It must exist.
  virtual int64_t stored_bytes(std::string_view name) const { return find(name)->nbytes(); }

  /// The file that contains a tensor, or the folder if the file is not known; for messages.
  virtual std::string file_of(std::string_view /*name*/) const { return directory(); }

  /// The files that are read; none if they are not known.
  virtual std::vector<const SafetensorsFile*> files() const { return {}; }

  /// Throws an Error that names the file if one of the tensors' files has changed since it was
  /// opened. Call this before results that were computed from the files are published.
  virtual void check_unchanged() const {}
};

}  // namespace aqhost
