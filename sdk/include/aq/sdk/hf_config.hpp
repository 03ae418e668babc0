// aq/sdk/hf_config.hpp - reads config.json of a Hugging Face checkpoint; errors name the key.
#pragma once

#include <algorithm>
#include <aq/sdk/model.hpp>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

namespace aq {

/// Typed access to an object of config.json. A key whose value is null counts as absent. Once the
/// adapter is made, the user is warned of keys that config.json sets and that no code asked for.
class HfConfig {
 public:
  explicit HfConfig(const Checkpoint& checkpoint)
      : HfConfig(checkpoint.config(), "", checkpoint.keys_read()) {}
  explicit HfConfig(nlohmann::json json, std::string path = "",
                    std::shared_ptr<ConfigKeys> keys_read = nullptr)
      : json_(std::move(json)), path_(std::move(path)), keys_read_(std::move(keys_read)) {
    if (!json_.is_object())
      throw Error("config.json" + (path_.empty() ? "" : ": " + path_) + " is no object");
  }

  bool has(const char* key) const {
    if (keys_read_ != nullptr) keys_read_->mark(path_ + key);
    return json_.contains(key) && !json_.at(key).is_null();
  }
  /// Marks keys that change nothing given how the other keys are set, so that the user is not
  /// warned of them.
  void ignore(std::initializer_list<const char*> keys) const {
    for (const char* key : keys) has(key);
  }
  const nlohmann::json& json() const { return json_; }

  /// An integer in [least, 2^31).
  int32_t integer(const char* key, int32_t least = 1) const {
    return to_integer(key, value(key), least);
  }
  int32_t integer_or(const char* key, int32_t otherwise, int32_t least = 1) const {
    return has(key) ? integer(key, least) : otherwise;
  }
  /// The number of layers or experts, from 1 to 4096. There will be a description of each, so a
  /// larger number is refused before a loop runs to it.
  int32_t count(const char* key) const {
    const int32_t n = integer(key);
    if (n > 4096) fail(key, json_.at(key), "1 to 4096");
    return n;
  }
  double number(const char* key) const {
    const auto& v = value(key);
    if (!v.is_number() || !std::isfinite(v.get<double>())) fail(key, v, "a finite number");
    return v.get<double>();
  }
  double number_or(const char* key, double otherwise) const {
    return has(key) ? number(key) : otherwise;
  }
  bool flag_or(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!value(key).is_boolean()) fail(key, value(key), "true or false");
    return value(key).get<bool>();
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!value(key).is_string()) fail(key, value(key), "a string");
    return value(key).get<std::string>();
  }
  HfConfig object(const char* key) const {
    if (!value(key).is_object()) fail(key, value(key), "an object");
    if (keys_read_ != nullptr) keys_read_->mark(path_ + key + ".");
    return HfConfig(value(key), path_ + key + ".", keys_read_);
  }
  std::vector<int32_t> integers_or_empty(const char* key) const {
    std::vector<int32_t> list;
    if (!has(key)) return list;
    if (!value(key).is_array()) fail(key, value(key), "an array of whole numbers");
    for (const auto& v : value(key)) list.push_back(to_integer(key, v, 0));
    return list;
  }

  [[noreturn]] void fail(const char* key, const nlohmann::json& found,
                         const std::string& expected) const {
    throw Error("config.json: " + path_ + key + " is " + found.dump() + ", expected " + expected);
  }

 private:
  const nlohmann::json& value(const char* key) const {
    if (!has(key)) throw Error("config.json has no " + path_ + key);
    return json_.at(key);
  }
  int32_t to_integer(const char* key, const nlohmann::json& v, int32_t least) const {
    // get() would turn an unsigned number above INT64_MAX into a negative one
    const bool fits =
        v.is_number_unsigned() ? v.get<uint64_t>() <= uint64_t{INT32_MAX} : v.is_number_integer();
    if (!fits || v.get<int64_t>() < least || v.get<int64_t>() > INT32_MAX)
      fail(key, v,
           "a whole number from " + std::to_string(least) + " to " + std::to_string(INT32_MAX));
    return v.get<int32_t>();
  }

  nlohmann::json json_;
  std::string path_;
  std::shared_ptr<ConfigKeys> keys_read_;
};

/// Rotary embedding as transformers 5 computes it (modeling_rope_utils.py). Both spellings of its
/// settings are understood: rope_theta with rope_scaling {type or rope_type}, and rope_parameters
/// {rope_type, rope_theta}. The known types are default, linear, dynamic, yarn and llama3; any
/// other type is an Error that names it. The arrays of frequencies live as long as this object.
/// Thread-safe.
class Rope {
 public:
  /// `default_fraction` is the part of a head that rotates if config.json has no
  /// partial_rotary_factor.
  Rope(const HfConfig& config, int32_t head_dim, double default_theta, double default_fraction = 1)
      : max_positions_(config.number_or("max_position_embeddings", 0)) {
    HfConfig settings(nlohmann::json::object());
    const bool old = config.has("rope_scaling") && !config.json().at("rope_scaling").empty();
    const char* key = old ? "rope_scaling" : "rope_parameters";
    if (config.has(key)) settings = config.object(key);
    // settings that belong to another type than the chosen one have no effect
    settings.ignore({"factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
                     "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor",
                     "truncate",
                     // the parts of a position in text are equal, so that it does not matter where
                     // they go
                     "mrope_section", "mrope_interleaved"});
    config.ignore({"original_max_position_embeddings"});
    for (const auto& [name, value] : settings.json().items())
      if (value.is_object())
        throw Error(std::string("config.json: ") + key + "." + name +
                        ": rope settings of a kind of layer are not supported",
                    AQ_UNSUPPORTED);
    type_ = settings.text_or("rope_type", settings.text_or("type", "default"));
    theta_ = settings.number_or("rope_theta", config.number_or("rope_theta", default_theta));
    const double fraction = settings.number_or(
        "partial_rotary_factor", config.number_or("partial_rotary_factor", default_fraction));
    // checked before the cast, which is undefined for numbers out of range
    if (!(fraction > 0 && fraction <= 1))
      throw Error("config.json: partial_rotary_factor is " + nlohmann::json(fraction).dump() +
                  ", expected a number above 0 and up to 1");
    dim_ = static_cast<int32_t>(head_dim * fraction);
    if (theta_ <= 0)
      throw Error("config.json: rope_theta is " + std::to_string(theta_) +
                  ", expected a positive number");
    if (dim_ <= 0 || dim_ % 2 != 0)
      throw Error("config.json: partial_rotary_factor leaves " + std::to_string(dim_) +
                  " dimensions of a head of " + std::to_string(head_dim) +
                  " to rotate, expected an even number");
    if (type_ == "default") return;
    if (type_ != "linear" && type_ != "dynamic" && type_ != "yarn" && type_ != "llama3")
      throw Error("config.json: the rope type \"" + type_ +
                      "\" is not supported, known: default, linear, dynamic, yarn, llama3",
                  AQ_UNSUPPORTED);
    original_positions_ =
        config.number_or("original_max_position_embeddings",
                         settings.number_or("original_max_position_embeddings", max_positions_));
    if (type_ != "linear" && (original_positions_ <= 0 || max_positions_ <= 0))
      throw Error("config.json: the rope type \"" + type_ + "\" needs max_position_embeddings");
    factor_ = settings.has("factor") || type_ != "yarn" ? settings.number("factor")
                                                        : max_positions_ / original_positions_;
    if (factor_ <= 0)
      throw Error("config.json: the rope factor is " + std::to_string(factor_) +
                  ", expected a positive number");
    if (type_ == "yarn") read_yarn(settings);
    if (type_ == "llama3") {
      low_factor_ = settings.number("low_freq_factor");
      high_factor_ = settings.number("high_freq_factor");
    }
  }

  int32_t dim() const { return dim_; }
  /// The factor by which cos and sin are multiplied.
  float scale() const { return static_cast<float>(attention_factor_); }
  /// The factor by which DeepSeek multiplies the scale of softmax attention. It is the temperature
  /// of YaRN (section 3.4), which the key mscale_all_dim moves from cos and sin to the scale.
  /// Without that key it is 1.
  float softmax_factor() const { return static_cast<float>(softmax_factor_); }

  /// dim() / 2 frequencies for sequences of length `seq_len`.
  const float* inv_freq(int64_t seq_len) const {
    const std::lock_guard lock(mutex_);
    auto& values = cache_[type_ == "dynamic" ? seq_len : 0];
    if (values.empty()) values = compute(seq_len);
    return values.data();
  }

 private:
  void read_yarn(const HfConfig& settings) {
    const auto mscale = [](double scale, double m) {
      return scale <= 1 ? 1.0 : 0.1 * m * std::log(scale) + 1.0;
    };
    const double m = settings.number_or("mscale", 0), all = settings.number_or("mscale_all_dim", 0);
    attention_factor_ =
        m != 0 && all != 0 ? mscale(factor_, m) / mscale(factor_, all) : mscale(factor_, 1);
    attention_factor_ = settings.number_or("attention_factor", attention_factor_);
    if (all != 0) softmax_factor_ = mscale(factor_, all) * mscale(factor_, all);
    beta_fast_ = settings.number_or("beta_fast", 32);
    beta_slow_ = settings.number_or("beta_slow", 1);
    truncate_ = settings.flag_or("truncate", true);
  }

  std::vector<float> compute(int64_t seq_len) const {
    double theta = theta_;
    if (type_ == "dynamic" && static_cast<double>(seq_len) > max_positions_)
      theta *= std::pow(factor_ * static_cast<double>(seq_len) / max_positions_ - (factor_ - 1),
                        dim_ / (dim_ - 2.0));
    std::vector<float> values;
    for (int32_t i = 0; i < dim_; i += 2) {
      const float plain = 1.0f / std::pow(static_cast<float>(theta),
                                          static_cast<float>(i) / static_cast<float>(dim_));
      values.push_back(type_ == "linear"   ? plain / static_cast<float>(factor_)
                       : type_ == "yarn"   ? yarn(plain, i / 2)
                       : type_ == "llama3" ? llama3(plain)
                                           : plain);
    }
    return values;
  }

  /// YaRN (arXiv:2309.00071).
  float yarn(float plain, int32_t i) const {
    const auto dimension = [this](double rotations) {
      return dim_ * std::log(original_positions_ / (rotations * 2 * std::numbers::pi)) /
             (2 * std::log(theta_));
    };
    double low = dimension(beta_fast_), high = dimension(beta_slow_);
    if (truncate_) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, dim_ - 1.0);
    if (low == high) high += 0.001;
    const auto ramp = static_cast<float>(std::clamp((i - low) / (high - low), 0.0, 1.0));
    return plain / static_cast<float>(factor_) * ramp + plain * (1 - ramp);
  }

  /// Llama 3.1: long wavelengths are stretched, short ones are kept, and those in between are
  /// blended.
  float llama3(float plain) const {
    const double wavelength = 2 * std::numbers::pi / plain;
    if (wavelength > original_positions_ / low_factor_) return plain / static_cast<float>(factor_);
    if (wavelength < original_positions_ / high_factor_) return plain;
    const double smooth =
        (original_positions_ / wavelength - low_factor_) / (high_factor_ - low_factor_);
    return static_cast<float>((1 - smooth) * plain / factor_ + smooth * plain);
  }

  std::string type_;
  double theta_ = 0, factor_ = 1, attention_factor_ = 1, softmax_factor_ = 1;
  double max_positions_, original_positions_ = 0;
  double beta_fast_ = 32, beta_slow_ = 1, low_factor_ = 1, high_factor_ = 1;
  bool truncate_ = true;
  int32_t dim_ = 0;
  mutable std::mutex mutex_;
  mutable std::map<int64_t, std::vector<float>> cache_;
};

}  // namespace aq
