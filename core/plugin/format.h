#pragma once

#include <aq/quantizer.h>
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/source.h"

namespace aqhost {

class Library;

/// An aq_format_desc together with the arrays to which it points. aq/quantizer.h explains the
/// fields. The arrays never change, so copies share them.
struct FormatDesc : aq_format_desc {
  FormatDesc() : aq_format_desc{} {}
  /// Copies the arrays of `desc`, whose counts and pointers must have been checked. `values` is
  /// read for a table only.
  explicit FormatDesc(const aq_format_desc& desc);

  /// The value of each code; empty unless the elements come from a table.
  std::span<const float> table() const {
    return {values, element_kind == AQ_ELEM_TABLE ? std::size_t{1} << element_bits : 0};
  }
  std::span<const float> search_factors() const { return {search, n_search}; }
  std::span<const int32_t> allowed_group_sizes() const { return {group_sizes, n_group_sizes}; }
  bool zero_point() const { return (flags & AQ_FORMAT_ZERO_POINT) != 0; }
  bool global_scale() const { return (flags & AQ_FORMAT_GLOBAL_SCALE) != 0; }
  bool signed_scale() const { return (flags & AQ_FORMAT_SIGNED_SCALE) != 0; }
  bool two_level() const { return fit_rule == AQ_FIT_TWO_LEVEL; }
  /// Whether groups have minima, which are two-level like their scales.
  bool minima() const { return two_level() && sub_minimum_max > 0; }
  /// Whether the host can compute everything from this description.
  bool described() const { return element_kind != AQ_ELEM_CUSTOM && fit_rule != AQ_FIT_CUSTOM; }
  /// Whether the host rounds to this format itself (quant/rounder.h); otherwise it asks the plugin.
  bool host_rounds() const { return described() && element_bits <= 8; }
  /// The number of columns in a group (the last group may have fewer): the group size, or a whole
  /// row of `cols` columns.
  int64_t width(int64_t cols) const { return group_size > 0 ? group_size : cols; }
  int64_t groups(int64_t cols) const { return (cols + width(cols) - 1) / width(cols); }
  /// The number of columns whose groups are fitted together: a super-group, or else one group.
  int64_t fit_width(int64_t cols) const { return two_level() ? super_size : width(cols); }
  int64_t code_bytes() const { return element_bits > 8 ? 2 : 1; }

 private:
  struct Arrays {
    std::vector<float> values, search;
    std::vector<int32_t> group_sizes;
  };
  std::shared_ptr<const Arrays> arrays_;  // what the pointers point to
};

/// A quantized matrix [rows, cols]. Codes are u8, or u16 above 8 bits; see code_bytes().
struct QuantizedMatrix {
  int64_t rows = 0, cols = 0;
  std::vector<std::byte> codes;      // [rows, cols / vector_dim]
  std::vector<float> group_params;   // [rows, groups, group_params]
  std::vector<float> tensor_params;  // [tensor_params]
};

/// One tensor on disk; info.name is the suffix ("weight_packed").
struct PackedTensor {
  TensorInfo info;
  std::vector<std::byte> bytes;
};

/// A number format of a plugin. Every call to the plugin is checked, as in Model for adapters.
/// Thread-safe.
class Format {
 public:
  /// Reads the description of `raw` and checks it. Takes ownership of `raw`, which is destroyed
  /// with this object, or if the constructor fails. An Error names the plugin's file. `library`
  /// stays open as long as this object lives.
  Format(const aq_quantizer* raw, std::string id, std::string plugin_path, Json options,
         std::shared_ptr<const Library> library = nullptr);
  ~Format();
  Format(const Format&) = delete;
  Format& operator=(const Format&) = delete;

  const std::string& id() const { return id_; }
  const Json& options() const { return options_; }  // as given to create()
  const FormatDesc& desc() const { return desc_; }
  /// The plugin's config_json(), an object.
  const Json& config() const { return config_; }
  /// The type of ggml whose blocks the first packed tensor consists of (aq/ext/gguf.h), if it does.
  std::optional<uint32_t> gguf_type() const { return gguf_type_; }

  /// Computes [tensor_params] for a matrix [rows, cols]; the result is empty if the format has
  /// none. `importance` is [cols] or empty.
  std::vector<float> fit_tensor(std::span<const float> weight, int64_t rows, int64_t cols,
                                std::span<const float> importance) const;
  /// Computes `params` [rows, groups(n), group_params] for one group or super-group [rows, n].
  void fit(std::span<const float> weight, int64_t rows, int64_t n,
           std::span<const float> importance, std::span<const float> tensor_params,
           std::span<float> params) const;
  /// Computes `codes` (empty or [rows, n / vector_dim]) and `values` (empty or [rows, n]) for one
  /// group.
  void quantize(std::span<const float> weight, int64_t rows, int64_t n,
                std::span<const float> params, std::span<const float> tensor_params,
                std::span<std::byte> codes, std::span<float> values) const;
  void dequantize(std::span<const std::byte> codes, int64_t rows, int64_t n,
                  std::span<const float> params, std::span<const float> tensor_params,
                  std::span<float> values) const;
  /// The values of the whole matrix, [rows, cols], computed group by group.
  std::vector<float> dequantize(const QuantizedMatrix& matrix) const;

  /// Names, types and shapes of the tensors in which a [rows, cols] matrix is stored on disk.
  /// Throws an Error if the format cannot store that shape.
  std::vector<TensorInfo> packed(int64_t rows, int64_t cols) const;
  std::vector<PackedTensor> pack(const QuantizedMatrix& matrix) const;
  /// `packed` must be in the order of packed(). Throws an Error if a code is out of range or a
  /// scale is not finite.
  QuantizedMatrix unpack(int64_t rows, int64_t cols,
                         const std::vector<std::span<const std::byte>>& packed) const;

  const aq_quantizer* raw() const { return raw_.get(); }

 private:
  void describe();
  void check_description() const;
  void check_two_level() const;
  void check_codes(std::span<const std::byte> codes, const char* function) const;
  std::vector<PackedTensor> buffers(int64_t rows, int64_t cols) const;
  template <typename... Args>
  [[noreturn]] void lie(fmt::format_string<Args...> format, Args&&... args) const;
  void check(aq_status status, const aq_error& error, const char* function) const;

  struct Destroy {
    void operator()(const aq_quantizer* quantizer) const;
  };
  std::shared_ptr<const Library> library_;
  std::unique_ptr<const aq_quantizer, Destroy> raw_;
  std::string id_, plugin_path_;
  Json options_, config_;
  FormatDesc desc_;
  std::optional<uint32_t> gguf_type_;
};

}  // namespace aqhost
