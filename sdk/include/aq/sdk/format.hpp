// aq/sdk/format.hpp - number formats in C++: a class that implements the ABI for a FormatSpec, and
// the export of a plugin.
#pragma once

#include <aq/ext/gguf.h>

#include <aq/sdk/format_spec.hpp>
#include <aq/sdk/grid.hpp>
#include <aq/sdk/tensor.hpp>
#include <aq/sdk/two_level.hpp>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace aq {

/// A number format; aq_quantizer documents each function. fit_tensor(), fit(), quantize() and
/// dequantize() follow the description. A format with custom parts derives from this class and
/// overrides the functions that the host calls for them. All functions are const and may be called
/// from any thread. They report errors by throwing.
class Quantizer {
 public:
  explicit Quantizer(FormatSpec spec)
      : spec_(detail::checked(std::move(spec))),
        desc_(detail::description(spec_)),
        grid_(desc_),
        config_(config_group(spec_, desc_).dump()) {}
  virtual ~Quantizer() = default;
  Quantizer(const Quantizer&) = delete;
  Quantizer& operator=(const Quantizer&) = delete;

  aq_format_desc describe() const {
    aq_format_desc desc = desc_;
    if (spec_.custom.codes) desc.element_kind = AQ_ELEM_CUSTOM;
    if (spec_.custom.fit) desc.fit_rule = AQ_FIT_CUSTOM;
    return desc;
  }

  virtual void fit_tensor(const aq_fit_args& args) const {
    const auto* weights = view<const float>(args.weight, "weight", {-1, -1});
    auto* params = view<float>(args.params, "params", {desc_.tensor_params});
    if (desc_.tensor_params == 0) return;
    params[0] = fit_global(desc_, weights, args.weight->shape[0] * args.weight->shape[1]);
  }

  virtual void fit(const aq_fit_args& args) const {
    const auto* weights = view<const float>(args.weight, "weight", {-1, -1});
    const int64_t rows = args.weight->shape[0], n = args.weight->shape[1];
    const auto* importance = optional_view<const float>(args.importance, "importance", {n});
    if (two_level(desc_)) return fit_two_level(args, weights, rows, n, importance);
    auto* params = view<float>(args.params, "params", {rows, desc_.group_params});
    const float global = global_of(args.tensor_params);
    if (desc_.group_size == 0) return fit_whole(weights, rows, n, importance, params);
    for (int64_t r = 0; r < rows; r++) {
      const GroupParams fitted = fit_group(desc_, grid_, weights + r * n, n, importance, global);
      params[r * desc_.group_params] = fitted.scale;
      if (desc_.group_params > 1) params[r * desc_.group_params + 1] = fitted.zero;
    }
  }

  virtual void quantize(const aq_code_args& args) const {
    if (desc_.element_bits > 8)
      quantize_to<uint16_t>(args);
    else
      quantize_to<uint8_t>(args);
  }

  virtual void dequantize(const aq_code_args& args) const {
    if (desc_.element_bits > 8)
      dequantize_from<uint16_t>(args);
    else
      dequantize_from<uint8_t>(args);
  }

  /// The i-th tensor in which a matrix is stored.
  aq_packed_tensor packed(uint32_t i, int64_t rows, int64_t cols) const {
    if (spec_.whole_groups && desc_.group_size > 0 && cols % desc_.group_size != 0)
      throw Error("groups of " + std::to_string(desc_.group_size) + " do not divide a row of " +
                      std::to_string(cols),
                  AQ_UNSUPPORTED);
    if (i >= spec_.packed.size()) throw Error("there is no packed tensor " + std::to_string(i));
    const char* suffix = spec_.packed[i].suffix;
    const TensorLayout layout = spec_.packed[i].layout({desc_, rows, cols});
    aq_packed_tensor tensor{};
    if (layout.shape.size() > std::size(tensor.shape))
      throw Error("packed tensor " + std::string(suffix) + " has " +
                  std::to_string(layout.shape.size()) + " dimensions, the ABI has room for 4");
    tensor.struct_size = sizeof tensor;
    tensor.ndim = static_cast<int32_t>(layout.shape.size());
    tensor.suffix = suffix;
    tensor.dtype = detail::element_type(layout.type);
    tensor.st_dtype = layout.type;
    std::copy(layout.shape.begin(), layout.shape.end(), tensor.shape);
    return tensor;
  }

  void pack(const aq_pack_args& args) const {
    const auto from = matrix<const uint8_t, const float>(args);
    for (std::size_t i = 0; i < spec_.packed.size(); i++)
      spec_.packed[i].pack(from, data_of(args.packed[i]));
  }

  void unpack(const aq_pack_args& args) const {
    const auto to = matrix<uint8_t, float>(args);
    for (std::size_t i = 0; i < spec_.packed.size(); i++)
      spec_.packed[i].unpack(data_of(args.packed[i]), to);
  }

  const std::string& config_json() const { return config_; }

  const void* extension(std::string_view id) const {
    return spec_.gguf_type > 0 && id == AQ_EXT_GGUF ? &gguf_type_ : nullptr;
  }

 private:
  static nlohmann::json config_group(const FormatSpec& spec, const aq_format_desc& desc) {
    nlohmann::json config = spec.config, weights = detail::config_weights(spec, desc);
    if (config.contains("weights")) weights.update(config["weights"]);
    config["weights"] = std::move(weights);
    return config;
  }

  /// Checks and views the tensors of pack() and unpack().
  template <typename Code, typename Param>
  MatrixView<Code, Param> matrix(const aq_pack_args& args) const {
    MatrixView<Code, Param> m{{desc_, args.rows, args.cols}, nullptr, nullptr, nullptr};
    const int64_t n = m.codes_per_row();
    if (desc_.element_bits > 8) {
      view<const uint16_t>(args.codes, "codes", {args.rows, n});
      m.codes = static_cast<Code*>(data_of(args.codes));
    } else {
      m.codes = view<Code>(args.codes, "codes", {args.rows, n});
    }
    m.params = view<Param>(args.group_params, "group_params",
                           {args.rows, m.groups_per_row(), desc_.group_params});
    if (desc_.tensor_params > 0)
      m.tensor_params = view<Param>(args.tensor_params, "tensor_params", {desc_.tensor_params});
    return m;
  }

  /// Fits one group that holds all rows. It has a scale, but no zero point or global scale.
  void fit_whole(const float* weights, int64_t rows, int64_t n, const float* importance,
                 float* params) const {
    std::vector<float> repeated;
    for (int64_t r = 0; importance != nullptr && r < rows; r++)
      repeated.insert(repeated.end(), importance, importance + n);
    const GroupParams fitted = fit_group(desc_, grid_, weights, rows * n,
                                         repeated.empty() ? nullptr : repeated.data(), 1.0f);
    std::fill(params, params + rows, fitted.scale);
  }

  /// Fits the super-group that each row is.
  void fit_two_level(const aq_fit_args& args, const float* weights, int64_t rows, int64_t n,
                     const float* importance) const {
    const int64_t groups = (n + desc_.group_size - 1) / desc_.group_size;
    auto* params = view<float>(args.params, "params", {rows, groups * desc_.group_params});
    std::vector<TwoLevelParams> fitted(static_cast<std::size_t>(groups));
    for (int64_t r = 0; r < rows; r++) {
      TwoLevelFit(desc_).fit(weights + r * n, n, importance, fitted.data());
      for (const auto& [scale, minimum, d, dmin] : fitted)
        for (const float value : {scale, minimum, d, dmin}) *params++ = value;
    }
  }

  float global_of(const DLTensor* tensor_params) const {
    return desc_.tensor_params > 0
               ? *view<const float>(tensor_params, "tensor_params", {desc_.tensor_params})
               : 1.0f;
  }

  template <typename Code>
  void quantize_to(const aq_code_args& args) const {
    const auto* weights = view<const float>(args.weight, "weight", {-1, -1});
    const int64_t rows = args.weight->shape[0], n = args.weight->shape[1];
    auto* codes = optional_view<Code>(args.codes, "codes", {rows, n});
    auto* values = optional_view<float>(args.values, "values", {rows, n});
    each_row(args, rows, [&](int64_t r, float step, float zero) {
      for (int64_t i = r * n; i < (r + 1) * n; i++) {
        const uint32_t code = grid_.code_of(weights[i], step, zero);
        if (codes != nullptr) codes[i] = static_cast<Code>(code);
        if (values != nullptr) values[i] = grid_.weight_of(code, step, zero);
      }
    });
  }

  template <typename Code>
  void dequantize_from(const aq_code_args& args) const {
    const auto* codes = view<const Code>(args.codes, "codes", {-1, -1});
    const int64_t rows = args.codes->shape[0], n = args.codes->shape[1];
    auto* values = view<float>(args.values, "values", {rows, n});
    each_row(args, rows, [&](int64_t r, float step, float zero) {
      for (int64_t i = r * n; i < (r + 1) * n; i++)
        values[i] = grid_.weight_of(codes[i], step, zero);
    });
  }

  /// Calls body(row, scale / global, zero) for each row.
  template <typename Body>
  void each_row(const aq_code_args& args, int64_t rows, Body body) const {
    const auto* params =
        view<const float>(args.group_params, "group_params", {rows, desc_.group_params});
    const float global = global_of(args.tensor_params);
    for (int64_t r = 0; r < rows; r++) {
      const float* p = params + r * desc_.group_params;
      body(r, p[0] / global, desc_.group_params > 1 ? p[1] : 0.0f);
    }
  }

  const FormatSpec spec_;
  const aq_format_desc desc_;  // points into spec_
  const Grid grid_;            // refers to desc_
  const std::string config_;
  const aq_gguf_type gguf_type_{sizeof(aq_gguf_type), spec_.gguf_type};
};

namespace detail {

/// An aq_quantizer that forwards its calls to a Quantizer.
struct QuantizerObject {
  aq_quantizer table;
  std::unique_ptr<const Quantizer> format;

  explicit QuantizerObject(std::unique_ptr<const Quantizer> made)
      : table{}, format(std::move(made)) {
    table.struct_size = sizeof table;
    table.plugin_data = this;
    table.destroy = [](const aq_quantizer* self) noexcept {
      delete static_cast<QuantizerObject*>(self->plugin_data);
    };
    table.get_extension = [](const aq_quantizer* self, const char* id) noexcept {
      return of(self).extension(id);
    };
    table.describe = [](const aq_quantizer* self, aq_format_desc* out, aq_error* err) noexcept {
      return guard(err, [&] { copy_out(out, of(self).describe()); });
    };
    table.fit_tensor = call<aq_fit_args, &Quantizer::fit_tensor>;
    table.fit = call<aq_fit_args, &Quantizer::fit>;
    table.quantize = call<aq_code_args, &Quantizer::quantize>;
    table.dequantize = call<aq_code_args, &Quantizer::dequantize>;
    table.pack = call<aq_pack_args, &Quantizer::pack>;
    table.unpack = call<aq_pack_args, &Quantizer::unpack>;
    table.get_packed = [](const aq_quantizer* self, int64_t rows, int64_t cols, uint32_t i,
                          aq_packed_tensor* out, aq_error* err) noexcept {
      return guard(err, [&] { copy_out(out, of(self).packed(i, rows, cols)); });
    };
    table.config_json = [](const aq_quantizer* self) noexcept {
      return of(self).config_json().c_str();
    };
  }

  template <typename Args, void (Quantizer::*function)(const Args&) const>
  static aq_status AQ_CALL call(const aq_quantizer* self, const Args* args,
                                aq_error* err) noexcept {
    return guard(err, [&] { (of(self).*function)(*args); });
  }

  static const Quantizer& of(const aq_quantizer* self) {
    return *static_cast<QuantizerObject*>(self->plugin_data)->format;
  }
};

inline std::unique_ptr<const Quantizer> made(FormatSpec spec) {
  return std::make_unique<const Quantizer>(std::move(spec));
}
inline std::unique_ptr<const Quantizer> made(std::unique_ptr<const Quantizer> format) {
  return format;
}

/// The factory of classes that each have
///   static constexpr aq::Descriptor kDescriptor;
///   static aq::FormatSpec create(aq::Options& options);
/// A class whose format has custom parts returns a std::unique_ptr<aq::Quantizer> instead.
template <typename... Classes>
struct QuantizerFactory {
  static constexpr aq_descriptor kDescriptors[]{aq_descriptor(Classes::kDescriptor)...};

  static uint32_t AQ_CALL count(const aq_quantizer_factory*) noexcept { return sizeof...(Classes); }
  static const aq_descriptor* AQ_CALL descriptor(const aq_quantizer_factory*, uint32_t i) noexcept {
    return &kDescriptors[i];
  }
  static const aq_quantizer* AQ_CALL create(const aq_quantizer_factory*, uint32_t i, const aq_host*,
                                            const char* options_json, aq_error* err) noexcept {
    using Create = std::unique_ptr<const Quantizer> (*)(Options&);
    static constexpr Create kCreate[]{
        [](Options& options) { return made(Classes::create(options)); }...};
    const aq_quantizer* format = nullptr;
    guard(err, [&] {
      Options options(nlohmann::json::parse(options_json));
      auto object = std::make_unique<QuantizerObject>(kCreate[i](options));
      options.done();
      format = &object.release()->table;
    });
    return format;
  }
  static constexpr aq_quantizer_factory kFactory{sizeof(aq_quantizer_factory), 0, count, descriptor,
                                                 create};
  static const void* AQ_CALL get(const char* id) noexcept {
    return std::string_view(id) == AQ_QUANTIZER_FACTORY_ID ? &kFactory : nullptr;
  }
};

}  // namespace detail
}  // namespace aq

/// Exports one or several formats; aq::detail::QuantizerFactory lists what their classes must have.
#define AQ_EXPORT_QUANTIZER(...) AQ_EXPORT_ENTRY(aq::detail::QuantizerFactory<__VA_ARGS__>::get)
