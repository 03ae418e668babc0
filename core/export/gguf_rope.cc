#include "export/gguf_rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/field.h"

namespace aqhost {
namespace {

constexpr double kTolerance = 1e-5;  // of a frequency in float32

/// The largest difference of the frequencies from `expected(i)`, relative to it.
template <typename Expected>
double worst_difference(const std::vector<float>& frequencies, Expected expected) {
  double worst = 0;
  for (std::size_t i = 0; i < frequencies.size(); i++)
    worst = std::max(worst, std::fabs(frequencies[i] / expected(static_cast<double>(i)) - 1));
  return worst;
}

/// Finds theta and factor so that frequency i of n is theta^(-i / n) / factor.
std::optional<GgufRope> plain_rope(const std::vector<float>& frequencies) {
  const std::size_t n = frequencies.size();
  if (n < 2 || !(frequencies.front() > 0) || !(frequencies.back() > 0)) return {};
  const double first = frequencies.front(), last = frequencies.back();
  const double power = static_cast<double>(n) / static_cast<double>(n - 1);
  const double exact = std::pow(first / last, power);
  // written thetas have few digits, and the last digits of this one come from rounding
  const double unit = std::pow(10.0, std::floor(std::log10(exact)) - 5);
  const double round = std::round(exact / unit) * unit;
  const double theta = std::fabs(round / exact - 1) < 1e-6 ? round : exact;
  const auto expected = [&](double i) {
    return first * std::pow(theta, -i / static_cast<double>(n));
  };
  if (worst_difference(frequencies, expected) > kTolerance) return {};
  GgufRope rope;
  rope.scaling = first == 1 ? "none" : "linear";
  rope.theta = static_cast<float>(theta);
  rope.factor = static_cast<float>(1 / first);
  return rope;
}

/// The settings of YaRN in config.json, in the newer or the older spelling.
std::optional<GgufRope> yarn_settings(const Json& config) {
  const Field root(config, "config.json");
  const bool old = config.contains("rope_scaling") && !config.at("rope_scaling").empty();
  const Field settings = root[old ? "rope_scaling" : "rope_parameters"];
  if (!settings.json().is_object()) return {};
  const auto number = [](const Field& field, double missing) {
    return field.is_null() ? missing : field.number();
  };
  if (settings["rope_type"].text_or(settings["type"].text_or("")) != "yarn") return {};
  const double theta = number(settings["rope_theta"], number(root["rope_theta"], 0));
  const double positions = number(root["original_max_position_embeddings"],
                                  number(settings["original_max_position_embeddings"], 0));
  GgufRope rope;
  rope.scaling = "yarn";
  rope.theta = static_cast<float>(theta);
  rope.original_positions = static_cast<int64_t>(positions);
  rope.factor = static_cast<float>(number(settings["factor"], 0));
  const bool whole = theta > 1 && positions >= 1 && rope.factor > 0;
  return whole ? std::optional(rope) : std::nullopt;
}

/// The largest difference of the frequencies from those of YaRN (arXiv:2309.00071), relative to
/// these. Like llama.cpp (ggml_rope_yarn_corr_dims(), rope_yarn()) this has a beta_fast of 32 and a
/// beta_slow of 1. `truncate`: as in llama.cpp, the bounds between which YaRN interpolates are
/// rounded to whole numbers.
double difference_from_yarn(const std::vector<float>& frequencies, const GgufRope& rope,
                            bool truncate) {
  const auto dims = static_cast<double>(2 * frequencies.size());
  const auto bound = [&](double rotations) {
    return dims *
           std::log(static_cast<double>(rope.original_positions) /
                    (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(double{rope.theta}));
  };
  double low = bound(32), high = bound(1);
  if (truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1);
  return worst_difference(frequencies, [&](double i) {
    const double plain = std::pow(double{rope.theta}, -2 * i / dims);
    const double kept = 1 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);
    return plain * (kept + (1 - kept) / rope.factor);
  });
}

/// Without a log_multiplier, llama.cpp's code for latent attention has the scale of
/// rope_scale^2 / sqrt(head_dim).
void set_latent_scale(const AttentionDesc& a, GgufRope& rope) {
  const double whole = std::sqrt(a.scale * std::sqrt(static_cast<double>(a.head_dim)));
  const double multiplier = (whole / a.rope_scale - 1) / (0.1 * std::log(double{rope.factor}));
  if (std::fabs(multiplier) < kTolerance) return;
  rope.log_multiplier = static_cast<float>(multiplier);
  rope.attention_factor = a.rope_scale;
}

}  // namespace

std::optional<GgufRope> gguf_rope(const Json& config, const AttentionDesc& attention) {
  const std::vector<float>& frequencies = attention.rope_inv_freq;
  if (auto plain = plain_rope(frequencies); plain && attention.rope_scale == 1) return plain;
  std::optional<GgufRope> yarn = yarn_settings(config);
  if (!yarn) return {};
  yarn->rounded = difference_from_yarn(frequencies, *yarn, true);
  if (yarn->rounded <= kTolerance)
    yarn->rounded = 0;
  else if (difference_from_yarn(frequencies, *yarn, false) > kTolerance)
    return {};
  yarn->attention_factor = attention.rope_scale / (0.1F * std::log(yarn->factor) + 1);
  if (attention.kind == AQ_ATTN_LATENT) set_latent_scale(attention, *yarn);
  return yarn;
}

}  // namespace aqhost
