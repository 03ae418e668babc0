#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/source.h"

namespace aqhost {

/// A dense tensor that the files of a checkpoint store quantized.
struct EncodedTensor {
  TensorInfo dense;                // as it was before it was quantized; its type is BF16
  std::vector<std::string> parts;  // the stored tensors that hold it
  /// Decodes out.size() elements of the flattened dense tensor from element `begin` on. The range
  /// lies within the tensor. A code or scale that is NaN gives NaN.
  std::function<void(const Source& stored, int64_t begin, std::span<float> out)> decode;
};

/// A checkpoint some of whose tensors are stored quantized, seen as its dense tensors. The tensors
/// that hold them are not seen. read_f32() gives the product of code and scale in float32, and not
/// what is left of it in bfloat16.
class DequantizedSource : public Source {
 public:
  /// `stored`: the checkpoint as its files store it. Throws an Error that names the tensor if the
  /// files also have a dense tensor of the name of an encoded one.
  DequantizedSource(std::unique_ptr<const Source> stored, std::vector<EncodedTensor> encoded);

  const Json& config() const override { return stored_->config(); }
  const std::string& directory() const override { return stored_->directory(); }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* find(std::string_view name) const override;
  void read_f32(std::string_view name, int64_t begin, std::span<float> out) const override;
  bool read_stored(std::string_view name, int64_t begin, std::span<std::byte> out) const override;
  int64_t stored_bytes(std::string_view name) const override;
  StoredSize stored_size() const override;
  std::string file_of(std::string_view name) const override;
  std::vector<const SafetensorsFile*> files() const override { return stored_->files(); }
  void check_unchanged() const override { stored_->check_unchanged(); }

 private:
  const EncodedTensor* find_encoded(std::string_view name) const;

  const std::unique_ptr<const Source> stored_;
  std::map<std::string, EncodedTensor, std::less<>> encoded_;  // by the name of the dense tensor
  std::vector<TensorInfo> infos_;                              // sorted by name
};

/// Opens a checkpoint, as its dense tensors if find_encoding() knows the "quant_method" of its
/// config.json, and otherwise as its files store it.
std::unique_ptr<Source> open_checkpoint(const std::filesystem::path& directory);

/// Finds the tensors that a checkpoint stores quantized, from its config.json and the headers of
/// its files. An Error names file and tensor, or the field of config.json, that is missing or
/// wrong.
using FindEncoded = std::vector<EncodedTensor> (*)(const Source& stored);

/// The function for a "quant_method" of config.json; nullptr if tensors of that method are not read
/// by a DequantizedSource.
FindEncoded find_encoding(std::string_view quant_method);

}  // namespace aqhost
