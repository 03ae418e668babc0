#include "variants.h"

#include <aq/sdk/numeric.hpp>
#include <cmath>
#include <limits>

#include "plugin/registry.h"

namespace aqhost {
namespace {

void add_integers(std::vector<std::pair<std::string, Json>>& all) {
  for (const char* id : {"int2", "int3", "int4", "int5", "int6", "int8"}) {
    for (const int size : {16, 128, -1}) all.emplace_back(id, Json{{"group_size", size}});
    all.emplace_back(id, Json{{"symmetric", false}, {"group_size", 32}});
    all.emplace_back(id, Json{{"scale_rule", "absmax"}, {"scale_dtype", "float16"}});
    all.emplace_back(id, Json{{"scale_rule", "absmax"}, {"symmetric", false}});
  }
  for (const int size : {-1, 0})
    all.emplace_back("int8", Json{{"activations", "int8"}, {"group_size", size}});
}

void add_floats(std::vector<std::pair<std::string, Json>>& all) {
  for (const char* rule : {"mse", "floor", "even", "ceil"}) {
    all.emplace_back("mxfp4", Json{{"scale_rule", rule}});
    for (const char* element : {"e2m3", "e3m2"})
      all.emplace_back("mxfp6", Json{{"scale_rule", rule}, {"element", element}});
    for (const char* element : {"e4m3", "e5m2"})
      all.emplace_back("mxfp8", Json{{"scale_rule", rule}, {"element", element}});
  }
  for (const char* rule : {"mse", "absmax"}) {
    all.emplace_back("nvfp4", Json{{"scale_rule", rule}});
    all.emplace_back("nf4", Json{{"scale_rule", rule}});
    all.emplace_back("fp4", Json{{"scale_rule", rule}, {"group_size", 32}});
    all.emplace_back("fp4", Json{{"scale_rule", rule}, {"group_size", -1}});
    for (const char* element : {"e2m3", "e3m2"})
      all.emplace_back("fp6", Json{{"scale_rule", rule}, {"element", element}});
    for (const char* element : {"e4m3", "e5m2"})
      for (const int size : {-1, 0})
        all.emplace_back("fp8",
                         Json{{"scale_rule", rule}, {"element", element}, {"group_size", size}});
  }
  for (const char* type : {"bfloat16", "float16", "float32"})
    all.emplace_back("fp8", Json{{"scale_dtype", type}});
}

/// What a group is made of to put weights on ties: the middles between neighbouring grid values.
std::vector<float> ties(const FormatDesc& desc) {
  std::vector<float> values(desc.table().begin(), desc.table().end());
  for (int q = desc.int_min; desc.table().empty() && q <= desc.int_max; q++)
    values.push_back(static_cast<float>(q));
  std::sort(values.begin(), values.end());
  std::vector<float> middles;
  for (std::size_t i = 1; i < values.size(); i++)
    middles.push_back((values[i - 1] + values[i]) / 2);
  return middles;
}

}  // namespace

const std::vector<std::shared_ptr<const Format>>& variants() {
  static const auto made = [] {
    static const Registry registry({AQ_BUILD_DIR "/plugins"});
    std::vector<std::pair<std::string, Json>> all;
    add_integers(all);
    add_floats(all);
    for (const char* id : {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k"})
      all.emplace_back(id, Json::object());
    std::vector<std::shared_ptr<const Format>> formats;
    for (const auto& [id, options] : all) formats.push_back(registry.create_format(id, options));
    return formats;
  }();
  return made;
}

std::string label(const Format& format) { return format.id() + " " + format.options().dump(); }

std::vector<std::vector<float>> hard_rows(const FormatDesc& desc, int64_t n) {
  const auto size = static_cast<std::size_t>(n);
  uint64_t state = 12345;
  const auto noise = [&state] {  // sum of 4 uniforms, a bell of variance 1/3
    float sum = 0;
    for (int i = 0; i < 4; i++) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<float>(state >> 40) * 0x1p-24f;
    }
    return sum - 2;
  };
  std::vector<std::vector<float>> rows;
  const auto row = [&](auto weight) {
    std::vector<float>& weights = rows.emplace_back(size);
    for (std::size_t i = 0; i < size; i++) weights[i] = weight(i);
  };
  row([](std::size_t) { return 0.0f; });
  row([](std::size_t i) { return i % 2 == 0 ? 0.0f : -0.0f; });
  row([&](std::size_t) { return noise(); });
  row([&](std::size_t i) { return i == 3 ? 17.0f : 0.01f * noise(); });
  row([&](std::size_t) { return std::fabs(noise()); });
  row([&](std::size_t) { return -1 - std::fabs(noise()); });
  row([&](std::size_t) { return 0x1p-140f * noise(); });
  row([&](std::size_t) { return 1e-30f * noise(); });
  row([&](std::size_t) { return 1e30f * noise(); });
  row([&](std::size_t i) { return i % 3 == 0 ? -2e38f : 2e38f; });
  row([&](std::size_t i) { return i == 0 ? std::numeric_limits<float>::denorm_min() : 0.0f; });
  row([&](std::size_t i) { return std::ldexp(noise(), static_cast<int>(i % 40) - 20); });
  row([](std::size_t) { return 0.7f; });
  const std::vector<float> middles = ties(desc);
  for (const float scale : {1.0f, 0.25f, -3.0f})
    row([&](std::size_t i) { return scale * middles[i * 7 % middles.size()]; });
  // the whole grid and a little beyond, so that scale 1 is absmax's
  row([&](std::size_t i) { return i == 0 ? desc.scale_divisor : middles[i % middles.size()]; });
  return rows;
}

}  // namespace aqhost
