#pragma once

#include <aq/quantizer.h>
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/source.h"

namespace aqhost {

class Library;

/// aq_format_desc, owning what it points to. See aq/quantizer.h for what the fields mean.
struct FormatDesc {
  int32_t element_kind = AQ_ELEM_INT, element_bits = 0, int_min = 0, int_max = 0, vector_dim = 1;
  std::vector<float> values, search;
  int32_t fit_rule = AQ_FIT_ABSMAX;
  float scale_divisor = 1, global_max = 0;
  int32_t scale_kind = AQ_SCALE_F32, scale_round = AQ_ROUND_NEAREST, scale_mantissa_bits = 0;
  int32_t group_size = -1;
  uint32_t group_params = 1, tensor_params = 0, n_packed = 1;
  bool zero_point = false, global_scale = false;
  std::vector<int32_t> group_sizes;

  /// Whether the host may do everything itself from this description.
  bool described() const { return element_kind != AQ_ELEM_CUSTOM && fit_rule != AQ_FIT_CUSTOM; }
  /// Whether the host rounds to this format itself (quant/rounder.h) or asks the plugin.
  bool host_rounds() const { return described() && element_bits <= 8; }
  /// Columns of a group, of the last maybe fewer: a row of `cols`, or the group size.
  int64_t width(int64_t cols) const { return group_size > 0 ? group_size : cols; }
  int64_t groups(int64_t cols) const { return (cols + width(cols) - 1) / width(cols); }
  int64_t code_bytes() const { return element_bits > 8 ? 2 : 1; }
};

/// A matrix [rows, cols] in a format. Codes are u8 (u16 above 8 bits: code_bytes()).
struct QuantizedMatrix {
  int64_t rows = 0, cols = 0;
  std::vector<std::byte> codes;      // [rows, cols / vector_dim]
  std::vector<float> group_params;   // [rows, groups, group_params]
  std::vector<float> tensor_params;  // [tensor_params]
};

/// One tensor on disk: info.name is the suffix ("weight_packed").
struct PackedTensor {
  TensorInfo info;
  std::vector<std::byte> bytes;
};

/// A quantization format behind its checks, as Model is for adapters. Any thread.
class Format {
 public:
  /// Describes and checks `raw` (taken over; destroyed with this, also on failure); Error names the
  /// plugin's file. `library` is kept open for as long as this lives.
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

  /// [tensor_params] of a matrix [rows, cols]; importance [cols] or empty. Empty if it has none.
  std::vector<float> fit_tensor(std::span<const float> weight, int64_t rows, int64_t cols,
                                std::span<const float> importance) const;
  /// params [rows, group_params] of one group [rows, n].
  void fit(std::span<const float> weight, int64_t rows, int64_t n,
           std::span<const float> importance, std::span<const float> tensor_params,
           std::span<float> params) const;
  /// codes (empty or [rows, n / vector_dim]) and values (empty or [rows, n]) of one group.
  void quantize(std::span<const float> weight, int64_t rows, int64_t n,
                std::span<const float> params, std::span<const float> tensor_params,
                std::span<std::byte> codes, std::span<float> values) const;
  void dequantize(std::span<const std::byte> codes, int64_t rows, int64_t n,
                  std::span<const float> params, std::span<const float> tensor_params,
                  std::span<float> values) const;
  /// The whole matrix, group by group: [rows, cols].
  std::vector<float> dequantize(const QuantizedMatrix& matrix) const;

  /// Names, types and shapes of what a [rows, cols] matrix becomes on disk. Error if the format
  /// cannot store that shape.
  std::vector<TensorInfo> packed(int64_t rows, int64_t cols) const;
  std::vector<PackedTensor> pack(const QuantizedMatrix& matrix) const;
  /// `packed` in the order of packed(). Error on codes out of range or scales not finite.
  QuantizedMatrix unpack(int64_t rows, int64_t cols,
                         const std::vector<std::span<const std::byte>>& packed) const;

  const aq_quantizer* raw() const { return raw_.get(); }

 private:
  void describe();
  void check_description() const;
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
};

}  // namespace aqhost
