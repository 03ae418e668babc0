#include "format_summary.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

namespace aqhost {
namespace {

constexpr int64_t kGroups = 64, kRow = 4096;

const char* scale_name(int32_t kind) {
  switch (kind) {
    case AQ_SCALE_F32:
      return "F32";
    case AQ_SCALE_F16:
      return "F16";
    case AQ_SCALE_BF16:
      return "BF16";
    case AQ_SCALE_E4M3:
      return "E4M3";
    case AQ_SCALE_E8M0:
      return "E8M0";
    default:
      return "its own";
  }
}

Json grid_of(const FormatDesc& d) {
  if (d.element_kind == AQ_ELEM_CUSTOM) return "its own";
  if (d.element_kind == AQ_ELEM_INT) return fmt::format("integers {} to {}", d.int_min, d.int_max);
  const std::set<float> values(d.table().begin(), d.table().end());
  return fmt::format("{} values from {:g} to {:g}", values.size(), *values.begin(),
                     *values.rbegin());
}

std::string size_text(int32_t size) {
  return size < 0 ? "row" : size == 0 ? "matrix" : std::to_string(size);
}

}  // namespace

Json summarize(const Format& format) {
  const FormatDesc& d = format.desc();
  const int64_t n = d.fit_width(kRow), groups = d.two_level() ? d.groups(n) : 1;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> weights(static_cast<std::size_t>(kGroups * n));
  for (float& w : weights) w = normal(random);
  std::vector<float> params(static_cast<std::size_t>(kGroups * groups) * d.group_params);
  std::vector<float> values(weights.size());
  std::vector<std::byte> codes(
      static_cast<std::size_t>(kGroups * n / d.vector_dim * d.code_bytes()));
  const std::vector<float> whole = format.fit_tensor(weights, kGroups, n, {});
  format.fit(weights, kGroups, n, {}, whole, params);
  // the groups of a super-group follow one another, as if each were a row
  format.quantize(weights, kGroups * groups, n / groups, params, whole, codes, values);
  double maximum = 0, sum = 0;
  for (std::size_t i = 0; i < weights.size(); i++) {
    const double error = std::fabs(weights[i] - values[i]);
    maximum = std::max(maximum, error);
    sum += error * error;
  }
  Json sizes = Json::array();
  for (const int32_t size : d.allowed_group_sizes()) sizes.push_back(size_text(size));
  return {{"bits", d.element_bits},
          {"grid", grid_of(d)},
          {"group_sizes", sizes},
          {"group_size", size_text(d.group_size)},
          {"scale", scale_name(d.described() ? d.scale_kind : 0)},
          {"zero_point", d.zero_point()},
          {"super_group", d.super_size},
          {"global_scale", d.global_scale()},
          {"max_error", maximum},
          {"rms_error", std::sqrt(sum / static_cast<double>(weights.size()))}};
}

std::string summary_text(const Json& s) {
  const auto sizes = s["group_sizes"].get<std::vector<std::string>>();
  return fmt::format(
      "{} bits, {}, groups of {} ({}){}, scale {}{}; errors on N(0,1): maximum {:.3f}, "
      "rms {:.4f}",
      s["bits"].get<int>(), s["grid"].get<std::string>(), fmt::join(sizes, " "),
      s["group_size"].get<std::string>(),
      s["super_group"].get<int>() > 0
          ? fmt::format(", in super-groups of {}", s["super_group"].get<int>())
          : "",
      s["scale"].get<std::string>(), s["global_scale"].get<bool>() ? " and a global scale" : "",
      s["max_error"].get<double>(), s["rms_error"].get<double>());
}

}  // namespace aqhost
