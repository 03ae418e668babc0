// aq/sdk/format_spec.hpp - everything that a number format consists of, as one value.
#pragma once

#include <algorithm>
#include <aq/sdk/packed_tensor.hpp>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace aq {

/// The group size of an instance, and all sizes that the format accepts.
struct GroupSize {
  GroupSize() = default;
  GroupSize(int32_t size, std::vector<int32_t> sizes) : chosen(size), accepted(std::move(sizes)) {}

  int32_t chosen = 0;
  std::vector<int32_t> accepted;
};

/// The options that a recipe gives one format. Each option is read once; an option that nothing
/// read is an Error.
class Options {
 public:
  explicit Options(nlohmann::json json) : json_(std::move(json)) {
    if (!json_.is_object()) throw Error("the options are no object");
  }

  GroupSize group_size(int32_t otherwise, std::vector<int32_t> accepted) {
    const auto it = json_.find("group_size");
    if (it == json_.end()) return {otherwise, std::move(accepted)};
    const bool whole = it->is_number_integer() && it->get<int64_t>() >= INT32_MIN &&
                       it->get<int64_t>() <= INT32_MAX;
    if (!whole || std::find(accepted.begin(), accepted.end(), it->get<int32_t>()) == accepted.end())
      fail("group_size", *it, nlohmann::json(accepted).dump());
    return {take("group_size").get<int32_t>(), std::move(accepted)};
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

struct IntRange {
  int32_t min = 0, max = 0;
};

/// How the scale of a group is fitted and rounded. Unless `kind` is E8M0, the host may then refine
/// the scale by least squares, also if it is float32. So the scale that is packed may be any number
/// of that kind, and must be stored as it is.
struct ScaleSpec {
  int32_t kind = 0;                  // AQ_SCALE_*
  int32_t round = AQ_ROUND_NEAREST;  // AQ_ROUND_*; E8M0 needs one of the other three
  int32_t mantissa_bits = 0;         // see AQ_ROUND_EVEN
  float divisor = 0;  // absmax / divisor is the scale; 0: the largest value, or half the int range
  bool zero_point = false;  // integers only; the scale then follows from minimum and maximum
  bool has_sign = false;    // see AQ_FORMAT_SIGNED_SCALE
  float global_max = 0;     // above 0: each matrix has a global scale; see aq/quantizer.h
};

/// Two-level scales, as aq/quantizer.h defines them. They need integers, a scale kind for d and
/// dmin, and one group size; the search factors are those of step 1 of TwoLevelFit.
struct TwoLevelSpec {
  int32_t super_size = 0;   // 0: scales have one level
  IntRange range{};         // of k
  int32_t minimum_max = 0;  // the largest m; 0: there are no minima
};

/// The parts of a format that the description at the top of aq/quantizer.h does not cover. The host
/// calls the functions of Quantizer for them, which a class of the format's own overrides.
struct CustomSpec {
  bool fit = false;    // fit_tensor() and fit() find the parameters
  bool codes = false;  // quantize() and dequantize() translate between weights and codes
  int32_t bits = 0;    // of a code, if neither values nor integers are given
  int32_t vector_dim = 1;
  uint32_t group_params = 0, tensor_params = 0;  // 0: as the description has them
};

/// A number format. Quantizer's constructor checks it; what is missing is an Error that names it.
struct FormatSpec {
  /// The values by code, 2 to 65536 of them; or else the range of the integers, whose codes count
  /// from the smallest one. Only custom codes need neither.
  std::vector<float> values{};
  IntRange integers{};
  ScaleSpec scale{};
  TwoLevelSpec two_level{};
  std::vector<float> search{};  // factors to try on the scale; empty: only 1
  GroupSize group_size{};
  /// The tensors of a matrix, in the order in which the host passes them.
  std::vector<PackedTensor> packed{};
  /// See aq_quantizer::config_json. Keys of "weights" that follow from the rest of the spec are
  /// added, unless they are there already.
  nlohmann::json config{};
  bool dynamic = false;       // this instance rounds activations; see Options::dynamic()
  bool whole_groups = false;  // refuses matrices whose rows cannot be cut into whole groups
  uint32_t gguf_type = 0;  // not 0: the first packed tensor consists of blocks; see aq/ext/gguf.h
  CustomSpec custom{};
};

namespace detail {

inline std::vector<float> falling_factors(float first, float step) {
  std::vector<float> factors;
  for (int i = 0; i < 45; i++) factors.push_back(first - static_cast<float>(i) * step);
  return factors;
}

}  // namespace detail

/// Factors of the scale search for real-valued scales of integers: 45 values from 1.05 down to 0.5.
inline std::vector<float> shrink_factors() { return detail::falling_factors(1.05f, 0.0125f); }

/// The same for small floats: 45 values from 1.6 down to 0.5. Their values lie the closer to one
/// another the smaller they are, so a group may lose less if its largest weight gets the second
/// largest value instead of the largest one, such as 4 instead of 6 in E2M1.
inline std::vector<float> float_factors() { return detail::falling_factors(1.6f, 0.025f); }

// GCC 12 destroys the members of a braced aggregate inside another one twice if a later member
// throws, as options do. So the structs in a FormatSpec are trivial or have constructors.
static_assert(std::is_trivially_destructible_v<ScaleSpec> &&
              std::is_trivially_destructible_v<TwoLevelSpec> &&
              std::is_trivially_destructible_v<CustomSpec> && !std::is_aggregate_v<GroupSize>);

/// The factors that the option scale_rule asks for: mse (the default, except for activations)
/// searches for the scale with the smallest error among `factors`, and absmax takes the largest
/// weight.
inline std::vector<float> scale_rule(Options& options, bool dynamic,
                                     std::vector<float> factors = shrink_factors()) {
  const bool search =
      options.choice("scale_rule", dynamic ? "absmax" : "mse", {"mse", "absmax"}) == "mse";
  return search ? std::move(factors) : std::vector<float>();
}

namespace detail {

/// Throws an Error if something is missing or contradicts itself. Otherwise returns the spec with
/// as many values as codes: the last value is repeated, and no weight gets those codes.
inline FormatSpec checked(FormatSpec spec) {
  const auto expect = [](bool holds, const char* otherwise) {
    if (!holds) throw Error(std::string("FormatSpec: ") + otherwise, AQ_INTERNAL);
  };
  const bool integers = spec.integers.min < spec.integers.max;
  expect(spec.values.empty() || !integers, "both values and integers are given");
  expect(!spec.values.empty() || integers || (spec.custom.codes && spec.custom.bits > 0),
         "neither values nor integers are given");
  expect(spec.values.empty() || (spec.values.size() >= 2 && spec.values.size() <= 1 << 16),
         "expected 2 to 65536 values");
  expect(!integers || int64_t{spec.integers.max} - spec.integers.min < 1 << 16,
         "the integers have more than 16 bits");
  expect(spec.scale.kind != 0, "the kind of scale is missing");
  expect(!spec.scale.zero_point || integers, "only integers have zero points");
  expect(!spec.scale.has_sign || (is_real_scale(spec.scale.kind) && !spec.scale.zero_point),
         "scales with a sign are of float32, float16 or bfloat16 and without zero points");
  const auto& sizes = spec.group_size.accepted;
  expect(std::find(sizes.begin(), sizes.end(), spec.group_size.chosen) != sizes.end(),
         "the group size is not one of those that the format accepts");
  if (const TwoLevelSpec& two = spec.two_level; two.super_size != 0)
    expect(integers && !spec.scale.zero_point && spec.scale.global_max == 0 &&
               spec.group_size.chosen > 0 && two.super_size % spec.group_size.chosen == 0,
           "two-level scales need integers, and groups that divide super-groups, and exclude zero "
           "points and a global scale");
  expect(!spec.packed.empty(), "the packed tensors are missing");
  for (const PackedTensor& tensor : spec.packed)
    expect(tensor.suffix != nullptr && tensor.layout && tensor.pack && tensor.unpack,
           "a packed tensor lacks its suffix or a function");
  expect(spec.config.is_object() && spec.config.contains("format"),
         "config has no \"format\" by which readers know the format");
  if (const std::size_t n = spec.values.size(); n > 0) {
    const float last = spec.values.back();
    spec.values.resize(std::bit_ceil(n), last);
  }
  return spec;
}

/// The description, which points into `spec`.
inline aq_format_desc description(const FormatSpec& spec) {
  const auto& [min, max] = spec.integers;
  aq_format_desc desc{};
  desc.element_kind = spec.values.empty() ? AQ_ELEM_INT : AQ_ELEM_TABLE;
  const auto last = spec.values.empty() ? static_cast<unsigned>(max - min)
                                        : static_cast<unsigned>(spec.values.size() - 1);
  desc.element_bits = last > 0 ? static_cast<int32_t>(std::bit_width(last)) : spec.custom.bits;
  desc.int_min = min;
  desc.int_max = max;
  desc.values = spec.values.empty() ? nullptr : spec.values.data();
  desc.vector_dim = spec.custom.vector_dim;
  const bool two_level = spec.two_level.super_size != 0;
  desc.fit_rule = two_level               ? AQ_FIT_TWO_LEVEL
                  : spec.scale.zero_point ? AQ_FIT_MINMAX
                                          : AQ_FIT_ABSMAX;
  desc.super_size = spec.two_level.super_size;
  desc.sub_min = spec.two_level.range.min;
  desc.sub_max = spec.two_level.range.max;
  desc.sub_minimum_max = spec.two_level.minimum_max;
  desc.scale_divisor =
      spec.scale.divisor != 0 ? spec.scale.divisor : static_cast<float>(max - min) / 2;
  if (spec.scale.divisor == 0)
    for (const float value : spec.values)
      desc.scale_divisor = std::max(desc.scale_divisor, std::fabs(value));
  desc.scale_kind = spec.scale.kind;
  desc.scale_round = spec.scale.round;
  desc.scale_mantissa_bits = spec.scale.mantissa_bits;
  desc.global_max = spec.scale.global_max;
  const bool global = spec.scale.global_max > 0;
  if (spec.scale.zero_point) desc.flags |= AQ_FORMAT_ZERO_POINT;
  if (global) desc.flags |= AQ_FORMAT_GLOBAL_SCALE;
  if (spec.scale.has_sign) desc.flags |= AQ_FORMAT_SIGNED_SCALE;
  desc.group_params = spec.custom.group_params > 0 ? spec.custom.group_params
                      : two_level                  ? 4
                      : spec.scale.zero_point      ? 2
                                                   : 1;
  desc.tensor_params = spec.custom.tensor_params > 0 ? spec.custom.tensor_params : global ? 1 : 0;
  desc.n_packed = static_cast<uint32_t>(spec.packed.size());
  desc.search = spec.search.empty() ? nullptr : spec.search.data();
  desc.n_search = static_cast<uint32_t>(spec.search.size());
  desc.group_size = spec.group_size.chosen;
  desc.group_sizes = spec.group_size.accepted.data();
  desc.n_group_sizes = static_cast<uint32_t>(spec.group_size.accepted.size());
  return desc;
}

/// The object "weights" of a config group, as compressed-tensors defines its keys.
inline nlohmann::json config_weights(const FormatSpec& spec, const aq_format_desc& desc) {
  const bool global = spec.scale.global_max > 0;
  const char* strategy = desc.group_size > 0    ? (global ? "tensor_group" : "group")
                         : spec.dynamic         ? "token"
                         : desc.group_size == 0 ? "tensor"
                                                : "channel";
  nlohmann::json group_size, dynamic = spec.dynamic, scale_dtype, zp_dtype;  // null
  if (desc.group_size > 0) group_size = desc.group_size;
  if (spec.dynamic && global) dynamic = "local";
  if (desc.scale_kind == AQ_SCALE_E8M0) scale_dtype = "torch.uint8";
  if (desc.scale_kind == AQ_SCALE_E4M3) scale_dtype = "torch.float8_e4m3fn";
  if (!spec.dynamic) {  // readers of activations choose a real type themselves
    if (desc.scale_kind == AQ_SCALE_BF16) scale_dtype = "torch.bfloat16";
    if (desc.scale_kind == AQ_SCALE_F16) scale_dtype = "torch.float16";
    if (desc.scale_kind == AQ_SCALE_F32) scale_dtype = "torch.float32";
  }
  if (spec.scale.zero_point) zp_dtype = "torch.int8";
  return {{"num_bits", desc.element_bits},
          {"type", spec.values.empty() ? "int" : "float"},
          {"symmetric", !spec.scale.zero_point && spec.two_level.minimum_max == 0},
          {"strategy", strategy},
          {"group_size", group_size},
          {"dynamic", dynamic},
          {"actorder", nullptr},
          {"scale_dtype", scale_dtype},
          {"zp_dtype", zp_dtype}};
}

}  // namespace detail
}  // namespace aq
