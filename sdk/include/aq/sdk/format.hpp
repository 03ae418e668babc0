// aq/sdk/format.hpp - number formats in C++: a base class that implements the ABI, and
// DescribedFormat, whose numerics follow from a description.
#pragma once

#include <aq/sdk/grid.hpp>
#include <aq/sdk/plugin.hpp>
#include <aq/sdk/tensor.hpp>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace aq {

/// One tensor on disk. `suffix` is a string literal.
struct Packed {
  const char* suffix;
  const char* st_dtype;  // the type as safetensors spells it
  DLDataType dtype;
  std::vector<int64_t> shape;
};

inline constexpr DLDataType kI8{kDLInt, 8, 1}, kI32{kDLInt, 32, 1}, kI64{kDLInt, 64, 1},
    kU8{kDLUInt, 8, 1}, kHalf{kDLFloat, 16, 1}, kBFloat{kDLBfloat, 16, 1}, kF32{kDLFloat, 32, 1};

/// What a format implements; aq_quantizer documents each function. All functions are const and may
/// be called from any thread. They report errors by throwing.
class Quantizer {
 public:
  virtual ~Quantizer() = default;
  virtual aq_format_desc describe() const = 0;
  virtual void fit_tensor(const aq_fit_args& args) const = 0;
  virtual void fit(const aq_fit_args& args) const = 0;
  virtual void quantize(const aq_code_args& args) const = 0;
  virtual void dequantize(const aq_code_args& args) const = 0;
  virtual std::vector<Packed> packed(int64_t rows, int64_t cols) const = 0;
  virtual void pack(const aq_pack_args& args) const = 0;
  virtual void unpack(const aq_pack_args& args) const = 0;
  virtual const std::string& config_json() const = 0;
};

/// The options that a recipe gives one format. Each option is read once; an option that nothing
/// read is an Error.
class Options {
 public:
  explicit Options(nlohmann::json json) : json_(std::move(json)) {
    if (!json_.is_object()) throw Error("the options are no object");
  }

  int32_t group_size(int32_t otherwise, const std::vector<int32_t>& allowed) {
    const auto it = json_.find("group_size");
    if (it == json_.end()) return otherwise;
    const bool whole = it->is_number_integer() && it->get<int64_t>() >= INT32_MIN &&
                       it->get<int64_t>() <= INT32_MAX;
    if (!whole || std::find(allowed.begin(), allowed.end(), it->get<int32_t>()) == allowed.end())
      fail("group_size", *it, nlohmann::json(allowed).dump());
    return take("group_size").get<int32_t>();
  }
  bool flag(const char* key, bool otherwise) {
    const auto it = json_.find(key);
    if (it == json_.end()) return otherwise;
    if (!it->is_boolean()) fail(key, *it, "true or false");
    return take(key).get<bool>();
  }
  std::string choice(const char* key, const std::string& otherwise,
                     const std::vector<std::string>& allowed) {
    const auto it = json_.find(key);
    if (it == json_.end()) return otherwise;
    if (!it->is_string() ||
        std::find(allowed.begin(), allowed.end(), it->get<std::string>()) == allowed.end())
      fail(key, *it, nlohmann::json(allowed).dump());
    return take(key).get<std::string>();
  }
  /// These are set by the host; see aq_quantizer_factory::create.
  bool dynamic() { return flag("dynamic", false); }
  std::string activations() const { return json_.value("activations", std::string()); }

  /// Must be called last: throws an Error if an option was not read.
  void done() {
    json_.erase("activations");
    if (!json_.empty())
      throw Error("the option \"" + json_.begin().key() + "\" is not known to this format");
  }

 private:
  [[noreturn]] static void fail(const std::string& key, const nlohmann::json& found,
                                const std::string& expected) {
    throw Error("the option " + key + " is " + found.dump() + ", expected one of " + expected);
  }
  nlohmann::json take(const char* key) {
    nlohmann::json value = json_.at(key);
    json_.erase(key);
    return value;
  }

  nlohmann::json json_;
};

/// A format whose description says everything except how codes are stored. A subclass fills `desc_`
/// and the vectors below (values, search factors, group sizes), and implements packing.
class DescribedFormat : public Quantizer {
 public:
  aq_format_desc describe() const override { return desc_; }

  void fit_tensor(const aq_fit_args& args) const override {
    const auto* weights = view<const float>(args.weight, "weight", {-1, -1});
    auto* params = view<float>(args.params, "params", {desc_.tensor_params});
    if (desc_.tensor_params == 0) return;
    params[0] = fit_global(desc_, weights, args.weight->shape[0] * args.weight->shape[1]);
  }

  void fit(const aq_fit_args& args) const override {
    const auto* weights = view<const float>(args.weight, "weight", {-1, -1});
    const int64_t rows = args.weight->shape[0], n = args.weight->shape[1];
    const auto* importance = optional_view<const float>(args.importance, "importance", {n});
    auto* params = view<float>(args.params, "params", {rows, desc_.group_params});
    const float global = global_of(args.tensor_params);
    if (desc_.group_size == 0) return fit_whole(weights, rows, n, importance, params);
    for (int64_t r = 0; r < rows; r++) {
      const GroupParams fitted = fit_group(desc_, grid(), weights + r * n, n, importance, global);
      params[r * desc_.group_params] = fitted.scale;
      if (desc_.group_params > 1) params[r * desc_.group_params + 1] = fitted.zero;
    }
  }

  void quantize(const aq_code_args& args) const override {
    if (desc_.element_bits > 8)
      quantize_to<uint16_t>(args);
    else
      quantize_to<uint8_t>(args);
  }

  void dequantize(const aq_code_args& args) const override {
    if (desc_.element_bits > 8)
      dequantize_from<uint16_t>(args);
    else
      dequantize_from<uint8_t>(args);
  }

  const std::string& config_json() const override { return config_; }

 protected:
  /// Points desc_ at the vectors. A subclass calls it once they are final.
  void seal() {
    desc_.values = values_.empty() ? nullptr : values_.data();
    desc_.search = search_.empty() ? nullptr : search_.data();
    desc_.n_search = static_cast<uint32_t>(search_.size());
    desc_.group_sizes = group_sizes_.data();
    desc_.n_group_sizes = static_cast<uint32_t>(group_sizes_.size());
    desc_.vector_dim = 1;
    grid_ = std::make_unique<Grid>(desc_);
  }
  int64_t groups(int64_t cols) const {
    return desc_.group_size <= 0 ? 1 : (cols + desc_.group_size - 1) / desc_.group_size;
  }
  const Grid& grid() const { return *grid_; }
  /// What config groups call the set of weights that share a scale.
  const char* strategy(bool dynamic) const {
    if (desc_.group_size > 0) return "group";
    return dynamic ? "token" : desc_.group_size == 0 ? "tensor" : "channel";
  }

  aq_format_desc desc_{};
  std::vector<float> values_, search_;
  std::vector<int32_t> group_sizes_;
  std::string config_;

 private:
  /// Fits one group that holds all rows. It has a scale, but no zero point or global scale.
  void fit_whole(const float* weights, int64_t rows, int64_t n, const float* importance,
                 float* params) const {
    std::vector<float> repeated;
    for (int64_t r = 0; importance != nullptr && r < rows; r++)
      repeated.insert(repeated.end(), importance, importance + n);
    const GroupParams fitted = fit_group(desc_, grid(), weights, rows * n,
                                         repeated.empty() ? nullptr : repeated.data(), 1.0f);
    std::fill(params, params + rows, fitted.scale);
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
        const uint32_t code = grid().code(weights[i] / step, zero);
        if (codes != nullptr) codes[i] = static_cast<Code>(code);
        if (values != nullptr) values[i] = grid().value(code, zero) * step;
      }
    });
  }

  template <typename Code>
  void dequantize_from(const aq_code_args& args) const {
    const auto* codes = view<const Code>(args.codes, "codes", {-1, -1});
    const int64_t rows = args.codes->shape[0], n = args.codes->shape[1];
    auto* values = view<float>(args.values, "values", {rows, n});
    each_row(args, rows, [&](int64_t r, float step, float zero) {
      for (int64_t i = r * n; i < (r + 1) * n; i++) values[i] = grid().value(codes[i], zero) * step;
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

  std::unique_ptr<Grid> grid_;
};

/// Factors of the scale search for real-valued scales: 45 values from 1.05 down to 0.5.
inline std::vector<float> shrink_factors() {
  std::vector<float> factors;
  for (int i = 0; i < 45; i++) factors.push_back(1.05f - static_cast<float>(i) * 0.0125f);
  return factors;
}

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
    table.get_extension = [](const aq_quantizer*, const char*) noexcept -> const void* {
      return nullptr;
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
      return guard(err, [&] {
        const auto tensors = of(self).packed(rows, cols);
        if (i >= tensors.size()) throw Error("there is no packed tensor " + std::to_string(i));
        const Packed& t = tensors[i];
        if (t.shape.size() > std::size(aq_packed_tensor{}.shape))
          throw Error("packed tensor " + std::string(t.suffix) + " has " +
                      std::to_string(t.shape.size()) + " dimensions, the ABI has room for 4");
        aq_packed_tensor value{
            sizeof value, static_cast<int32_t>(t.shape.size()), t.suffix, t.dtype, 0, {},
            t.st_dtype};
        std::copy(t.shape.begin(), t.shape.end(), value.shape);
        copy_out(out, value);
      });
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

/// The factory of one class that has
///   static constexpr aq::Descriptor kDescriptor;
///   static std::unique_ptr<aq::Quantizer> create(aq::Options& options);
template <typename Class>
struct QuantizerFactory {
  static constexpr aq_descriptor kDescriptor{aq_descriptor(Class::kDescriptor)};

  static uint32_t AQ_CALL count(const aq_quantizer_factory*) noexcept { return 1; }
  static const aq_descriptor* AQ_CALL descriptor(const aq_quantizer_factory*, uint32_t) noexcept {
    return &kDescriptor;
  }
  static const aq_quantizer* AQ_CALL create(const aq_quantizer_factory*, uint32_t, const aq_host*,
                                            const char* options_json, aq_error* err) noexcept {
    const aq_quantizer* format = nullptr;
    guard(err, [&] {
      Options options(nlohmann::json::parse(options_json));
      auto object = std::make_unique<QuantizerObject>(Class::create(options));
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

/// Exports one format class; aq::detail::QuantizerFactory lists what the class must have.
#define AQ_EXPORT_QUANTIZER(Class) AQ_EXPORT_ENTRY(aq::detail::QuantizerFactory<Class>::get)
