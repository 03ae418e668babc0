// What the plan and the engines make of families whose checkpoints are not in tests/models. The
// models have shapes and no weights.

#include "base/error.h"
#include "export/autogptq.h"
#include "plan/loadable.h"
#include "shapes_only.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

constexpr int64_t kHidden = 128, kInner = 64, kVocabulary = 16;
constexpr int kExperts = 2;
const std::string kLayer = "model.layers.0.";

Json config_of(const char* type, const Json& more, const Json& changes) {
  Json config{{"model_type", type},          {"hidden_size", kHidden},
              {"intermediate_size", kInner}, {"moe_intermediate_size", kInner},
              {"vocab_size", kVocabulary},   {"num_hidden_layers", 1},
              {"num_attention_heads", 4},    {"num_key_value_heads", 4},
              {"rms_norm_eps", 1e-6},        {"num_experts_per_tok", 1}};
  config.update(more);
  config.update(changes);
  return config;
}

void add_frame(ShapesOnly& model, const std::string& root = "model.") {
  model.add(root + "embed_tokens", {kVocabulary, kHidden});
  model.add(root + "norm", {kHidden});
  if (model.config().value("tie_word_embeddings", false)) return;
  model.add("lm_head", {kVocabulary, kHidden});
}

void add_norms(ShapesOnly& model, const std::string& layer) {
  model.add(layer + "input_layernorm", {kHidden});
  model.add(layer + "post_attention_layernorm", {kHidden});
}

/// Softmax attention with heads of `head` values; the queries are `q_parts` times as wide.
void add_attention(ShapesOnly& model, const std::string& layer, int64_t head, int64_t q_parts = 1) {
  model.add(layer + "self_attn.q_proj", {4 * head * q_parts, kHidden});
  for (const char* map : {"k_proj", "v_proj"})
    model.add(layer + "self_attn." + map, {4 * head, kHidden});
  model.add(layer + "self_attn.o_proj", {kHidden, 4 * head});
}

void add_experts(ShapesOnly& model, const std::string& moe) {
  model.add(moe + "gate", {kExperts, kHidden});
  for (int e = 0; e < kExperts; e++)
    model.ffn(moe + "experts." + std::to_string(e) + ".", kInner, kHidden);
}

/// A model with latent attention. Without a value, `q_rank` leaves one matrix for the queries.
ShapesOnly latent_model(const char* type, int64_t q_rank, const Json& changes = {}) {
  ShapesOnly model(config_of(type,
                             {{"qk_nope_head_dim", 16},
                              {"qk_rope_head_dim", 16},
                              {"v_head_dim", 32},
                              {"kv_lora_rank", 64},
                              {"q_lora_rank", q_rank > 0 ? Json(q_rank) : Json()},
                              {"n_routed_experts", kExperts},
                              {"n_shared_experts", 1},
                              {"first_k_dense_replace", 0},
                              {"n_group", 1},
                              {"topk_group", 1}},
                             changes.is_null() ? Json::object() : changes));
  add_frame(model);
  add_norms(model, kLayer);
  const std::string attention = kLayer + "self_attn.";
  if (q_rank > 0) {
    model.add(attention + "q_a_proj", {q_rank, kHidden});
    model.add(attention + "q_a_layernorm", {q_rank});
    model.add(attention + "q_b_proj", {4 * 32, q_rank});
  } else {
    model.add(attention + "q_proj", {4 * 32, kHidden});
  }
  model.add(attention + "kv_a_proj_with_mqa", {64 + 16, kHidden});
  model.add(attention + "kv_a_layernorm", {64});
  model.add(attention + "kv_b_proj", {4 * (16 + 32), 64});
  model.add(attention + "o_proj", {kHidden, 4 * 32});
  add_experts(model, kLayer + "mlp.");
  model.ffn(kLayer + "mlp.shared_experts.", kInner, kHidden);
  if (std::string(type) != "deepseek_v2")
    model.tensor(kLayer + "mlp.gate.e_score_correction_bias", {kExperts});
  return model;
}

const Json kPublishedV3{{"topk_method", "noaux_tc"}, {"scoring_func", "sigmoid"}};

/// Qwen3-Next (with fused projections), or Qwen3.5 with or without a vision tower: a layer with the
/// gated delta rule, then one with softmax attention.
ShapesOnly delta_model(const char* type, const std::string& root) {
  Json text = config_of(type,
                        {{"num_hidden_layers", 2},
                         {"full_attention_interval", 2},
                         {"head_dim", 64},
                         {"linear_num_key_heads", 2},
                         {"linear_num_value_heads", 4},
                         {"linear_key_head_dim", 16},
                         {"linear_value_head_dim", 32},
                         {"shared_expert_intermediate_size", kInner},
                         {"num_experts", kExperts}},
                        Json::object());
  const bool composite = std::string(type) == "qwen3_5_moe";
  ShapesOnly model(composite ? Json{{"model_type", type}, {"text_config", text}} : text);
  add_frame(model, root);
  for (int l = 0; l < 2; l++) {
    const std::string layer = root + "layers." + std::to_string(l) + ".";
    const std::string delta = layer + "linear_attn.";
    add_norms(model, layer);
    if (l == 1) {
      add_attention(model, layer, 64, 2);
      for (const char* norm : {"self_attn.q_norm", "self_attn.k_norm"})
        model.add(layer + norm, {64});
    } else {
      if (std::string(type) == "qwen3_next") {
        model.add(delta + "in_proj_qkvz", {2 * 32 + 2 * 128, kHidden});
        model.add(delta + "in_proj_ba", {8, kHidden});
      } else {
        model.add(delta + "in_proj_qkv", {2 * 32 + 128, kHidden});
        model.add(delta + "in_proj_z", {128, kHidden});
        for (const char* map : {"in_proj_b", "in_proj_a"}) model.add(delta + map, {4, kHidden});
      }
      model.add(delta + "conv1d", {2 * 32 + 128, 1, 4});
      model.tensor(delta + "A_log", {4});
      model.tensor(delta + "dt_bias", {4});
      model.add(delta + "norm", {32});
      model.add(delta + "out_proj", {kHidden, 128});
    }
    add_experts(model, layer + "mlp.");
    model.ffn(layer + "mlp.shared_expert.", kInner, kHidden);
    model.add(layer + "mlp.shared_expert_gate", {1, kHidden});
  }
  return model;
}

ShapesOnly gpt_oss(const Json& changes = Json::object()) {
  ShapesOnly model(config_of("gpt_oss",
                             {{"head_dim", 32},
                              {"rms_norm_eps", 1e-5},
                              {"sliding_window", 8},
                              {"num_local_experts", kExperts},
                              {"max_position_embeddings", 1024},
                              {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}}},
                             changes));
  add_frame(model);
  add_norms(model, kLayer);
  add_attention(model, kLayer, 32);
  for (const char* map : {"q_proj", "k_proj", "v_proj", "o_proj"})
    model.tensor(kLayer + "self_attn." + map + ".bias", {128});
  model.tensor(kLayer + "self_attn.sinks", {4});
  model.add(kLayer + "mlp.router", {kExperts, kHidden});
  model.tensor(kLayer + "mlp.router.bias", {kExperts});
  const std::string experts = kLayer + "mlp.experts.";
  model.tensor(experts + "gate_up_proj", {kExperts, kHidden, 2 * kInner});
  model.tensor(experts + "gate_up_proj_bias", {kExperts, 2 * kInner});
  model.tensor(experts + "down_proj", {kExperts, kInner, kHidden});
  model.tensor(experts + "down_proj_bias", {kExperts, kHidden});
  return model;
}

ShapesOnly minimax(const Json& changes) {
  ShapesOnly model(
      config_of("minimax_m2", {{"head_dim", 32}, {"num_local_experts", kExperts}}, changes));
  add_frame(model);
  add_norms(model, kLayer);
  add_attention(model, kLayer, 32);
  for (const char* norm : {"self_attn.q_norm", "self_attn.k_norm"}) model.add(kLayer + norm, {128});
  const std::string moe = kLayer + "block_sparse_moe.";
  model.add(moe + "gate", {kExperts, kHidden});
  model.tensor(moe + "e_score_correction_bias", {kExperts});
  for (int e = 0; e < kExperts; e++)
    model.ffn(moe + "experts." + std::to_string(e) + ".", kInner, kHidden, "w1", "w3", "w2");
  return model;
}

/// One layer with routed and shared experts.
ShapesOnly deepseek_moe() {
  ShapesOnly model(config_of("deepseek", {{"n_routed_experts", kExperts}, {"n_shared_experts", 1}},
                             Json::object()));
  add_frame(model);
  add_norms(model, kLayer);
  add_attention(model, kLayer, kHidden / 4);
  add_experts(model, kLayer + "mlp.");
  model.ffn(kLayer + "mlp.shared_experts.", kInner, kHidden);
  return model;
}

struct Loads {
  Loadable vllm, sglang, transformers;
};

Plan plan_of(const Model& model, const std::string& recipe,
             const Container& container = compressed_tensors()) {
  return make_plan(model, Recipe::parse(recipe, "r.yaml"), registry(), "", container);
}

Loads loads_of(const ShapesOnly& source, const std::string& recipe = "{default: {group_size: 64}}",
               const Container& container = compressed_tensors()) {
  const auto model = registry().create_model(source, "auto");
  const auto loads = loadable(plan_of(*model, recipe, container), *model, source);
  return {loads[0], loads[1], loads[2]};
}

bool says(const std::vector<std::string>& sentences, const std::string& text) {
  return std::any_of(sentences.begin(), sentences.end(),
                     [&](const std::string& s) { return s.find(text) != std::string::npos; });
}

const std::string kUniform = "{default: {group_size: 64}}";

TEST_CASE("attention of DeepSeek-MoE has no names in vLLM; tests/engines holds it to that") {
  const std::string dense = ", overrides: [{pattern: '*.self_attn.*', skip: true}";
  const std::string int4 = "{default: {group_size: 64}", one_dense = int4 + dense + "]}";
  const std::string other =
      int4 + ", overrides: [{pattern: '*.shared_experts.*', group_size: 32}]}";
  const std::string other_dense =
      int4 + dense + ", {pattern: '*.shared_experts.*', group_size: 32}]}";
  const auto refuses = [](const std::string& recipe, const Container& container) {
    return says(loads_of(deepseek_moe(), recipe, container).vllm.refused, "gives attention");
  };
  CHECK(!refuses(kUniform, compressed_tensors()));
  CHECK(refuses(one_dense, compressed_tensors()));
  CHECK(refuses(other, compressed_tensors()));
  CHECK(!refuses(other_dense, compressed_tensors()));
  CHECK(refuses(kUniform, autogptq()));
  CHECK(!refuses(one_dense, autogptq()));
}

TEST_CASE("published DeepSeek-V3 with a dense kv_b_proj loads in all three engines") {
  const ShapesOnly model = latent_model("deepseek_v3", 64, kPublishedV3);
  const std::string dense_kv_b =
      "{default: {group_size: 64}, overrides: [{pattern: '*.kv_b_proj', skip: true}]}";
  const Loads loads = loads_of(model, dense_kv_b);
  CHECK(loads.vllm.problems() == std::vector<std::string>{});
  CHECK(loads.sglang.problems() == std::vector<std::string>{});
  CHECK(loads.transformers.problems() == std::vector<std::string>{});
  CHECK(!loads.vllm.run);  // its source was read, and no such export loaded
  CHECK(says(loads_of(model).sglang.refused, "kv_b_proj is read dense"));
  CHECK(loads_of(model).vllm.loads());
}

TEST_CASE("q_a and kv_a are fused by vLLM and SGLang") {
  const Loads loads = loads_of(latent_model("deepseek_v3", 64, kPublishedV3),
                               "{default: {group_size: 64}, overrides: [{pattern: "
                               "'*.kv_a_proj_with_mqa', group_size: 32}]}");
  const std::string text = "q_a and kv_a must be of one format, and are int4 g64 and int4 g32";
  CHECK(says(loads.vllm.refused, text));
  CHECK(says(loads.sglang.refused, text));
  CHECK(loads.transformers.loads());
}

TEST_CASE("keys of the published DeepSeek-V3 that transformers does not write") {
  const Loads loads = loads_of(latent_model("deepseek_v3", 64));
  CHECK(says(loads.vllm.refused, "vLLM reads topk_method, scoring_func, which"));
  CHECK(says(loads.sglang.refused, "SGLang reads topk_method, scoring_func, which"));
  CHECK(loads.transformers.loads());
}

TEST_CASE("what engines have not of latent attention") {
  Json config = kPublishedV3;
  config["rope_interleave"] = false;
  config["rms_norm_eps"] = 1e-5;
  config["tie_word_embeddings"] = true;
  const Loads loads = loads_of(latent_model("deepseek_v3", 64, config));
  CHECK(says(loads.vllm.wrong, "whatever rope_interleave says"));
  CHECK(says(loads.vllm.notes,
             "takes rms_norm_eps for the norms inside latent attention, where "
             "transformers and eval take 1e-06"));
  CHECK(says(loads.vllm.wrong, "does not tie the head of deepseek_v3"));
  CHECK(loads.sglang.wrong == std::vector<std::string>{});
}

TEST_CASE("Kimi-K2 needs code of its own in SGLang and transformers") {
  const Loads loads = loads_of(latent_model("kimi_k2", 64, kPublishedV3));
  CHECK(loads.vllm.loads());
  CHECK(says(loads.sglang.refused, "configuration_deepseek.py"));
  CHECK(says(loads.transformers.refused, "no model_type kimi_k2"));
}

TEST_CASE("DeepSeek-V3.2 is V3 in windows in which its indexer chooses all tokens") {
  Json config = kPublishedV3;
  config.update({{"max_position_embeddings", 4096}, {"index_topk", 64}});
  ShapesOnly source = latent_model("deepseek_v32", 64, config);
  source.add(kLayer + "self_attn.indexer.wk", {16, kHidden});
  const auto model = registry().create_model(source, "auto");
  CHECK(model->desc().max_positions == 64);  // longer windows are refused
  REQUIRE(model->copied().size() == 1);
  CHECK(model->copied().front().tensors ==
        std::vector<std::string>{kLayer + "self_attn.indexer.wk.weight"});
  CHECK(says(loads_of(source).vllm.notes, "it was not checked what vLLM makes of the indexer"));
  CHECK(loads_of(source).transformers.loads());
}

TEST_CASE("first maps of attention must have one aq, also those that no engine fuses") {
  const auto refused = [](const ShapesOnly& source, const std::string& pattern) {
    const auto model = registry().create_model(source, "auto");
    CHECK_THROWS_WITH_AS(
        plan_of(*model, "{default: {group_size: 64, aq: int8}, overrides: [{pattern: '" + pattern +
                            "', wq: int4, aq: fp8}]}"),
        doctest::Contains("both have the same input, and it is rounded once"), Error);
  };
  refused(latent_model("deepseek_v2", 0), "*.kv_a_proj_with_mqa");
  refused(latent_model("deepseek_v2", 64), "*.kv_a_proj_with_mqa");
  refused(delta_model("qwen3_next", "model."), "*.in_proj_ba");
  refused(delta_model("qwen3_5_moe_text", "model."), "*.in_proj_a");
}

TEST_CASE("Qwen3-Next keeps the gates of the delta rule, its norms and its router dense") {
  const ShapesOnly source = delta_model("qwen3_next", "model.");
  const auto model = registry().create_model(source, "auto");
  for (const PlannedModule& m : plan_of(*model, kUniform).modules) {
    CAPTURE(m.module->name);
    const std::string& name = m.module->name;
    const bool dense = name.ends_with("in_proj_ba") || name.ends_with("mlp.gate") ||
                       name.ends_with("shared_expert_gate") || name == "lm_head";
    CHECK((m.format == nullptr) == dense);
  }
  const Loads loads = loads_of(source);
  CHECK(loads.vllm.loads());
  CHECK(loads.transformers.loads());
}

TEST_CASE("Qwen3.5 as a text model and with a vision tower") {
  const std::string mixed =
      "{default: {group_size: 64}, overrides: [{pattern: '*.out_proj', group_size: 32}]}";
  CHECK(loads_of(delta_model("qwen3_5_moe_text", "model."), mixed).vllm.loads());
  const ShapesOnly composite = delta_model("qwen3_5_moe", "model.language_model.");
  CHECK(loads_of(composite).vllm.loads());
  CHECK(
      says(loads_of(composite, mixed).vllm.refused, "vLLM calls model.language_model. otherwise"));
  CHECK(says(loads_of(composite).transformers.notes, "AutoModelForImageTextToText"));
  const Loads split = loads_of(
      delta_model("qwen3_5_moe_text", "model."),
      "{default: {group_size: 64}, overrides: [{pattern: '*.in_proj_z', group_size: 32}]}");
  CHECK(says(split.vllm.refused, "in_proj_qkv and in_proj_z must be of one format"));
  CHECK(says(split.sglang.refused, "in_proj_qkv and in_proj_z must be of one format"));
}

TEST_CASE("quantized experts of gpt-oss are right nowhere, its attention is") {
  const std::string attention_only =
      "{default: {group_size: 64}, overrides: [{pattern: '*.experts.*', skip: true}]}";
  const Loads all = loads_of(gpt_oss()), attention = loads_of(gpt_oss(), attention_only);
  for (const Loadable& l : {all.vllm, all.sglang, all.transformers})
    CHECK(says(l.problems(), "in one tensor for all"));
  CHECK(attention.vllm.problems() == std::vector<std::string>{});
  CHECK(attention.transformers.loads());
  CHECK(says(loads_of(gpt_oss({{"rope_scaling", Json()}}), attention_only).vllm.refused, "yarn") ==
        false);  // then transformers' default is YaRN
  CHECK(says(loads_of(gpt_oss({{"layer_types", {"full_attention"}}}), attention_only).vllm.wrong,
             "whatever layer_types says"));
  CHECK(says(loads_of(gpt_oss({{"rms_norm_eps", 1e-6}}), attention_only).vllm.wrong,
             "takes 1e-5 for rms_norm_eps"));
}

TEST_CASE("MiniMax-M2: keys that only the published config.json has") {
  const Json published{{"rotary_dim", 16},
                       {"scoring_func", "sigmoid"},
                       {"use_routing_bias", true},
                       {"use_qk_norm", true}};
  const Loads loads = loads_of(minimax(published));
  CHECK(loads.vllm.loads());
  CHECK(loads.transformers.wrong ==
        std::vector<std::string>{
            "config.json: transformers ignores rotary_dim, and rotates whole heads"});
  const Loads written = loads_of(minimax({{"partial_rotary_factor", 0.5}}));
  CHECK(says(written.vllm.refused, "vLLM reads rotary_dim, scoring_func, use_routing_bias, which"));
  CHECK(written.transformers.loads());
}

}  // namespace
}  // namespace aqhost
