#include "small_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "base/file.h"
#include "whole_writer.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kVocabulary = 2048;  // the tokenizer's

std::vector<TensorInfo> tensors_of(const SmallModel& m) {
  std::vector<TensorInfo> tensors;
  const auto add = [&tensors](const std::string& name, std::vector<int64_t> shape) {
    tensors.push_back({name + ".weight", DType::kBF16, std::move(shape)});
  };
  add("model.embed_tokens", {kVocabulary, m.hidden});
  add("model.norm", {m.hidden});
  if (m.head) add("lm_head", {kVocabulary, m.hidden});
  for (int64_t l = 0; l < m.layers; l++) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    for (const char* norm :
         {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"})
      add(layer + norm, {m.hidden});
    for (const char* map : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      add(layer + "self_attn." + map, {m.hidden, m.hidden});
      if (m.biases)
        tensors.push_back({layer + "self_attn." + map + ".bias", DType::kBF16, {m.hidden}});
    }
    add(layer + "mlp.gate", {m.experts, m.hidden});
    for (int64_t e = 0; e < m.experts; e++) {
      const std::string expert = layer + "mlp.experts." + std::to_string(e) + ".";
      add(expert + "gate_proj", {m.inner, m.hidden});
      add(expert + "up_proj", {m.inner, m.hidden});
      add(expert + "down_proj", {m.hidden, m.inner});
    }
  }
  return tensors;
}

Json config_of(const SmallModel& m) {
  return {{"architectures", {"OlmoeForCausalLM"}},
          {"model_type", "olmoe"},
          {"vocab_size", kVocabulary},
          {"hidden_size", m.hidden},
          {"intermediate_size", m.inner},
          {"num_hidden_layers", m.layers},
          {"num_attention_heads", m.heads},
          {"num_key_value_heads", m.heads},
          {"max_position_embeddings", 1024},
          {"rms_norm_eps", 1e-5},
          {"num_experts", m.experts},
          {"num_experts_per_tok", m.top_k},
          {"attention_bias", m.biases},
          {"tie_word_embeddings", !m.head}};
}

}  // namespace

at::Tensor some_windows(int64_t count, int64_t length) {
  return (at::arange(count * length) * 7919 % kVocabulary).reshape({count, length});
}

const Registry& registry() {
  static const Registry plugins({fs::path(AQ_BUILD_DIR) / "plugins"});
  return plugins;
}

void SmallModel::write(const fs::path& folder) const {
  const fs::path tokenizer = fs::path(AQ_TESTS_DIR) / "models/olmoe-tiny";
  fs::create_directory(folder);
  Json config_json = config_of(*this);
  config_json.update(Json::parse(config));
  write_file(folder / "config.json", config_json.dump());
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    fs::copy_file(tokenizer / name, folder / name);
  const std::vector<TensorInfo> tensors = tensors_of(*this);
  WholeWriter writer(folder, tensors, int64_t{1} << 40);
  at::manual_seed(1);
  for (const TensorInfo& info : tensors) {
    const at::Tensor values =
        info.shape.size() == 1
            ? at::ones(info.shape, at::kBFloat16)
            : (at::randn(info.shape) / std::sqrt(info.shape[1])).to(at::kBFloat16);
    writer.write(info.name, {static_cast<const std::byte*>(values.data_ptr()), values.nbytes()});
  }
  writer.finish();
}

OpenModel::OpenModel(const SmallModel& sizes) {
  at::set_num_threads(1);  // for such small matrices, more threads take longer
  sizes.write(folder_ / "model");
  reader_ = std::make_unique<Reader>(folder_ / "model");
  model_ = registry().create_model(*reader_, "auto");
}

Plan OpenModel::plan(const std::string& recipe, const std::string& algorithm,
                     const Container& container) const {
  return make_plan(*model_, Recipe::parse(recipe, "r.yaml"), registry(), algorithm, container);
}

Json OpenModel::quantize(const Plan& plan, const std::string& name, uint64_t seed) const {
  QuantizeOptions options;
  options.target = folder_ / name;
  if (plan.needs_calibration())
    options.calibration =
        CalibrationOptions{{{fs::path(AQ_TESTS_DIR) / "data/kjv_calib.txt"}}, 8, 64, seed};
  return to_json(aqhost::quantize(*reader_, *model_, plan, options));
}

}  // namespace aqhost
