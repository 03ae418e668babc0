// A config.json: what the SDK makes of it for a model plugin, and its quantization_config.

#include <aq/sdk/hf_decoder.hpp>
#include <cstdint>

#include "base/error.h"
#include "check.h"
#include "export/quantization_config.h"

namespace {

void read_model(const nlohmann::json& json) {
  try {
    const aq::HfConfig config(json);
    check(aq::hf_model_desc(config).n_layers > 0);
    const aq::LayerDesc layer = aq::hf_attention(config);
    check(layer.attention.n_heads > 0 && layer.attention.head_dim > 0);
    if (layer.attention.head_dim > 1 << 16) return;
    const aq::Rope rope(config, layer.attention.head_dim, 10000.0);
    check(rope.inv_freq(64) != nullptr);
  } catch (const aq::Error&) {
  }
}

void read_quantization(const nlohmann::json& config) {
  const auto groups = aqhost::parse_quantization_config(config, "fuzz");
  for (const char* module : {"model.layers.0.mlp.experts.3.up_proj", "lm_head"}) {
    const aqhost::ConfigGroup* group = aqhost::find_group(groups, module);
    check(group == nullptr || group->format.contains("weights"));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  try {
    const nlohmann::json config =
        aqhost::parse_json(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    read_model(config);
    if (config.is_object() && config.contains("quantization_config"))
      read_quantization(config["quantization_config"]);
  } catch (const aqhost::Error&) {
  }
  return 0;
}
