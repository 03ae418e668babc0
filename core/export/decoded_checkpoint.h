#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/reader.h"
#include "checkpoint/source.h"
#include "export/layout.h"
#include "plugin/registry.h"

namespace aqhost {

/// A module as a quantized checkpoint stores it.
struct StoredModule {
  std::string name;
  std::shared_ptr<const Format> format;
  std::shared_ptr<const Format> activations;  // to which its input is rounded; null: none
  int64_t rows = 0, cols = 0;
};

/// A checkpoint that was quantized by aqhost, or by another writer of compressed-tensors' or GPTQ's
/// format, seen as its dense tensors. Formats are recognised from config.json alone: every format
/// plugin is asked for its config() under the options of the group. Opening checks that every
/// packed tensor exists with the type and shape that its format requires; codes and scales are
/// checked when they are read.
class DecodedCheckpoint : public Source {
 public:
  DecodedCheckpoint(std::unique_ptr<Reader> reader, const Registry& registry);

  const Json& config() const override { return reader_->config(); }
  const std::string& directory() const override { return reader_->directory(); }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* find(std::string_view name) const override;
  /// For a quantized matrix, decodes the whole matrix each time.
  void read_f32(std::string_view name, int64_t begin, std::span<float> out) const override;
  std::string file_of(std::string_view name) const override { return reader_->file_of(name); }
  void check_unchanged() const override { reader_->check_unchanged(); }

  const std::vector<StoredModule>& modules() const { return modules_; }  // sorted by name
  bool is_gptq() const { return layout_ == Layout::kGptq; }
  /// The module with that name, or nullptr if it is dense.
  const StoredModule* find_module(std::string_view name) const;
  QuantizedMatrix read(const StoredModule& module) const;
  /// The weights of a module, row by row. Throws an Error that names file and module if one is not
  /// finite.
  std::vector<float> decode(const StoredModule& module) const;
  /// The global scale of a module's activations; 1 if they have none.
  float input_global(const StoredModule& module) const;
  /// The bytes of the packed tensors of all modules (without weight_shape), and the number of
  /// weights in them.
  int64_t packed_bytes() const;
  int64_t packed_weights() const;

 private:
  void add_compressed(const std::set<std::string>& names, const Registry& registry);
  void add_gptq(const std::set<std::string>& names, const Registry& registry);
  void add_module(StoredModule module);
  /// The tensors of a module in their order, named by suffix.
  std::vector<TensorInfo> tensors_of(const StoredModule& module) const;

  std::unique_ptr<Reader> reader_;
  Layout layout_ = Layout::kCompressedTensors;
  std::vector<StoredModule> modules_;
  std::vector<TensorInfo> infos_;
};

/// Opens a plain checkpoint, or a quantized one as its dense tensors, as config.json says.
std::unique_ptr<Source> open_source(const std::filesystem::path& directory,
                                    const Registry& registry);

}  // namespace aqhost
