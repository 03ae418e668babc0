#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/source.h"
#include "export/container.h"
#include "plugin/registry.h"

namespace aqhost {

/// A checkpoint that was quantized by aqhost, or by another writer of one of its containers, seen
/// as its dense tensors. Opening checks that every packed tensor exists with the type and shape
/// that its format requires; codes and scales are checked when they are read.
class DecodedCheckpoint : public Source {
 public:
  /// `stored`: the checkpoint as its files store it.
  DecodedCheckpoint(std::unique_ptr<const Source> stored, const Registry& registry);

  const Json& config() const override { return stored_->config(); }
  const std::string& directory() const override { return stored_->directory(); }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* find(std::string_view name) const override;
  /// For a quantized matrix, decodes the whole matrix each time.
  void read_f32(std::string_view name, int64_t begin, std::span<float> out) const override;
  bool read_stored(std::string_view name, int64_t begin, std::span<std::byte> out) const override;
  RoundedInput input_rounding(std::string_view module) const override;
  /// The bytes of the quantized modules are those of their packed tensors, without weight_shape.
  StoredSize stored_size() const override;
  int64_t stored_bytes(std::string_view name) const override;
  std::string file_of(std::string_view name) const override { return stored_->file_of(name); }
  std::vector<const SafetensorsFile*> files() const override { return stored_->files(); }
  void check_unchanged() const override { stored_->check_unchanged(); }

  const std::vector<StoredModule>& modules() const { return modules_; }  // sorted by name
  /// The module with that name, or nullptr if it is dense.
  const StoredModule* find_module(std::string_view name) const;
  /// The codes and scales of a module.
  QuantizedMatrix read(const StoredModule& module) const;
  /// The weights of a module, row by row. Throws an Error that names file and module if one is not
  /// finite.
  std::vector<float> decode(const StoredModule& module) const;
  /// Throws an Error unless the modules of `model` that config.json calls quantized are exactly
  /// those that are stored quantized.
  void check_config(const Model& model) const;

 private:
  /// The module whose weight is the tensor with that name, or nullptr.
  const StoredModule* module_of(std::string_view tensor) const;
  /// The tensors of a module in their order, named by suffix. Throws an Error if one is missing or
  /// has another type or shape.
  std::vector<TensorInfo> checked_tensors(const StoredModule& module) const;

  const std::unique_ptr<const Source> stored_;
  const Container& container_;
  std::vector<StoredModule> modules_;
  std::vector<TensorInfo> infos_;
};

/// Opens a plain checkpoint, or a quantized one as its dense tensors, as config.json says: an
/// export or another checkpoint in one of the containers, or one of find_encoding().
std::unique_ptr<Source> open_source(const std::filesystem::path& directory,
                                    const Registry& registry);

}  // namespace aqhost
