// The rules of vLLM 0.32, from the source in vllm/model_executor:
// layers/quantization/compressed_tensors (schemes/ and compressed_tensors_moe/),
// layers/quantization/auto_gptq.py, layers/fused_moe/oracle/int_wna16.py and w4a8_int8.py (which
// kernel runs experts), layers/quantization/utils/marlin_utils.py and
// kernels/linear/mixed_precision (which sizes a kernel accepts), models/ and models/utils.py (the
// options of each family; a bias without a parameter is silently skipped). They hold on a GPU;
// without one, vLLM has few of these kernels. tests/engines loads exports of OLMoE, Mixtral,
// Qwen2-MoE and DeepSeek-MoE in vLLM; of the other families, only the source was read.

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "plan/engine_rules.h"

namespace aqhost {
namespace {

constexpr std::array kMacheteGroups{-1, 64, 128};

template <std::size_t N>
bool one_of(int32_t group, const std::array<int, N>& sizes) {
  return std::find(sizes.begin(), sizes.end(), group) != sizes.end();
}

/// 4-bit integers with FP8 inputs: CUTLASS, only on Hopper. `tile` must divide both sizes.
bool runs_on_hopper(const PlannedModule& m, const StoredAs& s, int64_t tile) {
  return s.bits == 4 && s.symmetric && s.inputs == "fp8" && s.group == 128 &&
         m.module->in_features % tile == 0 && m.module->out_features % tile == 0;
}

constexpr const char* kHopper = "run on GPUs of compute capability 9.0 (Hopper) alone";

/// Integers in packed words, or in GPTQ's layout. They run with Marlin, or else with Triton.
void check_packed_expert_in_vllm(const PlannedModule& m, const StoredAs& s, int64_t hidden,
                                 Findings& f) {
  const std::string& name = m.module->name;
  if (s.rounds_inputs()) {
    if (runs_on_hopper(m, s, 256))
      f.note(name, fmt::format("experts in {} {}", s.text, kHopper));
    else
      f.refuse(name, no_kernel("experts", s));
  } else if (s.bits != 4 && s.bits != 8) {
    f.refuse(name, fmt::format("experts of {} bits have no kernel, but for the humming package's",
                               s.bits));
  } else if (!s.symmetric && s.bits == 8) {
    f.refuse(name, "experts of 8 bits with zero points have no kernel");
  } else if (hidden % 128 != 0 && s.group < 0) {
    f.refuse(name, fmt::format("experts with a scale per row have kernels where 128 divides the "
                               "hidden size, which is {}",
                               hidden));
  } else if (hidden % 128 != 0) {
    f.note(name, fmt::format("the hidden size of {}, which 128 does not divide, leaves the Triton "
                             "kernel for experts, which is slower than Marlin",
                             hidden));
  } else if (!one_of(s.group, kMarlinGroups)) {
    f.note(name, fmt::format("groups of {} leave the Triton kernel for experts, which is slower "
                             "than Marlin (groups of 32, 64, 128 and -1)",
                             s.group));
  }
}

/// Floats in blocks of 32. The file cannot say whether inputs are rounded.
void note_mx_inputs(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const char* own = s.bits == 4 ? "mxfp4" : "mxfp8";
  if (!s.rounds_inputs())
    f.note(m.module->name,
           fmt::format("GPUs with kernels for {0} (Blackwell) round the inputs to {0}, too; a "
                       "recipe with aq: {0} shows in eval what that costs",
                       own));
  else if (s.inputs != own)
    f.note(m.module->name, fmt::format("the inputs of {} are not rounded to {}", own, s.inputs));
}

/// NVFP4, whose inputs have a global scale.
void check_nvfp4(const PlannedModule& m, const StoredAs& s, Findings& f) {
  if (s.rounds_inputs() && s.inputs != "nvfp4")
    f.refuse(m.module->name, "the inputs of nvfp4 can be in nvfp4 or as they come only");
  else if (s.rounds_inputs() && is_expert(m))
    f.note(m.module->name,
           "the inputs of all experts of a layer get one input_global_scale, where they are stored "
           "with several the one of the largest range: eval measures each expert's own");
}

void check_expert_in_vllm(const PlannedModule& m, const StoredAs& s, int64_t hidden, Findings& f) {
  if (s.format == "pack-quantized" || s.format == "gptq")
    check_packed_expert_in_vllm(m, s, hidden, f);
  else if (s.format == "mxfp4-pack-quantized" || s.format == "mxfp8-quantized")
    note_mx_inputs(m, s, f);
  else if (s.format == "nvfp4-pack-quantized")
    check_nvfp4(m, s, f);
  else if (s.format == "naive-quantized")
    f.refuse(m.module->name, no_kernel("experts", s) + " unless inputs are rounded, too: aq: fp8");
  else if (!((s.format == "float-quantized" && s.inputs == "fp8") ||
             (s.format == "int-quantized" && s.inputs == "int8")) ||
           s.group == 0)
    f.refuse(m.module->name, no_kernel("experts", s));
}

void check_packed_linear(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const std::string& name = m.module->name;
  const bool marlin = one_of(s.group, kMarlinGroups);
  if (s.bits != 4 && s.bits != 8) {
    f.refuse(name, no_kernel("linear maps", s));
  } else if (s.inputs == "int8" || s.inputs == "int4") {
    f.note(name, fmt::format("the inputs of linear maps in {} are not rounded", s.text));
    if (!marlin) f.refuse(name, no_kernel("linear maps", s));
  } else if (s.rounds_inputs()) {
    if (runs_on_hopper(m, s, 128))
      f.note(name, fmt::format("linear maps in {} {}", s.text, kHopper));
    else
      f.refuse(name, no_kernel("linear maps", s));
  } else if (!s.symmetric && s.bits == 8) {
    if (one_of(s.group, kMacheteGroups))
      f.note(name, fmt::format("linear maps of 8 bits with zero points {}", kHopper));
    else
      f.refuse(name, no_kernel("linear maps", s));
  } else if (!marlin && !(s.bits == 4 && s.group == 256)) {
    if (s.symmetric)
      f.note(name, fmt::format("linear maps in groups of {} run with --dtype float16 alone "
                               "(Exllama)",
                               s.group));
    else
      f.refuse(name, no_kernel("linear maps", s));
  }
}

void check_gptq_linear(const PlannedModule& m, const StoredAs& s, Findings& f) {
  if (s.bits != 4 && s.bits != 8)
    f.refuse(m.module->name,
             fmt::format("GPTQ's layout is read with 4 and 8 bits, not with {}", s.bits));
  else if (!one_of(s.group, kMarlinGroups))
    f.refuse(m.module->name, fmt::format("GPTQ's layout is read in groups of 32, 64, 128 and -1 "
                                         "outside the experts, not of {}",
                                         s.group));
}

void check_linear_in_vllm(const PlannedModule& m, const StoredAs& s, Findings& f) {
  if (s.format == "gptq")
    check_gptq_linear(m, s, f);
  else if (s.format == "pack-quantized")
    check_packed_linear(m, s, f);
  else if (s.format == "mxfp4-pack-quantized" || s.format == "mxfp8-quantized")
    note_mx_inputs(m, s, f);
  else if (s.format == "nvfp4-pack-quantized")
    check_nvfp4(m, s, f);
  else if (!(s.format == "naive-quantized" ||
             (s.format == "float-quantized" && s.inputs == "fp8") ||
             (s.format == "int-quantized" && s.inputs == "int8")))
    f.refuse(m.module->name, no_kernel("linear maps", s));
}

/// models/*.py, and models/deepseek_v2.py for all kinds of latent attention.
const FamiliesOptions& families_of_vllm() {
  static const FamiliesOptions options{
      {"olmoe", {}},
      {"mixtral", {.tied = true, .head_dim = true}},
      {"qwen2_moe", {.qkv_bias = true, .tied = true, .acts = true}},
      {"deepseek_moe", {.acts = true}},
      {"qwen3_moe", {.qkv_bias = true, .tied = true, .head_dim = true, .acts = true}},
      {"qwen3_next", {.head_dim = true, .acts = true}},
      {"qwen3_5_moe", {.tied = true, .head_dim = true, .acts = true}},
      {"deepseek_v2", {.acts = true}},
      {"deepseek_v3", {.acts = true}},
      {"glm4_moe", {.qkv_bias = true, .head_dim = true, .acts = true}},
      {"gpt_oss", {.qkv_bias = true, .out_bias = true, .head_dim = true}},
      {"minimax_m2", {.head_dim = true}},
      {"granitemoe", {.tied = true}},
      {"ernie4_5_moe",
       {.qkv_bias = true, .ffn_bias = true, .tied = true, .head_dim = true, .acts = true}}};
  return options;
}

/// models/deepseek_v2.py and glm4_moe_lite.py.
void check_latent_in_vllm(const Export& e, const ModelFacts& facts, Findings& f) {
  if (!facts.rope_interleaved)
    f.wrong("config.json", "vLLM rotates pairs of neighbours, whatever rope_interleave says");
  const Json& config = e.original.config();
  if (facts.family == "deepseek_v3" && facts.type != "glm4_moe_lite") {
    // without them, it makes no parameter for the correction bias, and takes a softmax
    check_keys(e, "vLLM", {"topk_method", "scoring_func"}, f);
  }
  if (facts.family == "deepseek_v2" &&
      config.value("topk_method", Json()) != "group_limited_greedy" &&
      config.value("n_group", Json(1)).is_number() && config.value("n_group", Json(1)) != 1)
    f.wrong("config.json", "vLLM chooses among groups of experts, whatever topk_method says");
  for (const PlannedModule& m : e.plan.modules)
    if (m.format && is_role(m, {AQ_ROLE_ATTN_KV_B}) && m.activations)
      f.note(m.module->name,
             "vLLM decodes the weight of kv_b_proj when it loads it, so that its inputs are not "
             "always rounded");
}

/// models/gpt_oss.py: _load_weights_other() and OAIAttention.
void check_gpt_oss_in_vllm(const Export& e, const ModelFacts& facts, Findings& f) {
  const Json& config = e.original.config();
  for (const PlannedModule& m : e.plan.modules)
    if (m.format && is_expert(m))
      f.refuse(m.module->name,
               "the experts of gpt-oss are read in one tensor for all, in BF16 or in the MXFP4 of "
               "OpenAI's checkpoints, and an export has a tensor for each");
  if (count_schemes(e.plan) > 1)
    f.refuse("config.json",
             "vLLM calls self_attn otherwise in gpt-oss, and then does not find which format a "
             "module has, unless all have the same");
  if (facts.norm_eps != 1e-5F) f.wrong("config.json", "vLLM takes 1e-5 for rms_norm_eps");
  if (!facts.qkv_bias || !facts.out_bias)
    f.wrong("config.json", "vLLM requires biases in attention (attention_bias: true)");
  for (int32_t l = 0; l < e.model.desc().n_layers; l++)
    if ((e.model.attention(l, 1).sliding_window > 0) != (l % 2 == 0))
      f.wrong("config.json", "vLLM has windows in every second layer, whatever layer_types says");
  const Json rope = config.value("rope_scaling", config.value("rope_parameters", Json()));
  if (rope.is_object() && rope.value("rope_type", rope.value("type", Json())) != "yarn")
    f.refuse("config.json", "vLLM supports gpt-oss only with a rotary embedding of type yarn");
}

/// models/deepseek_v2.py: DeepseekAttention gives its linear maps no names, so that vLLM finds
/// their format only where it looks for none: in compressed-tensors of one scheme, whose target is
/// Linear.
void check_deepseek_attention(const Export& e, Findings& f) {
  const bool gptq = e.plan.container->name() == "gptq";
  const bool reads_quantized = !gptq && count_schemes(e.plan) == 1;
  for (const PlannedModule& m : e.plan.modules) {
    if (!is_role(m, {AQ_ROLE_ATTN_Q, AQ_ROLE_ATTN_K, AQ_ROLE_ATTN_V, AQ_ROLE_ATTN_O}) ||
        (m.format != nullptr) == reads_quantized)
      continue;
    f.refuse(
        m.module->name,
        reads_quantized
            ? "vLLM gives attention in DeepSeek-MoE no names, and takes it for quantized where "
              "all quantized modules are of one format"
            : "vLLM gives attention in DeepSeek-MoE no names, and takes it for dense in GPTQ's "
              "layout, and where quantized modules are of several formats");
  }
}

void check_deepseek_moe(const Export& e, Findings& f) {
  check_deepseek_attention(e, f);
  if (e.has_file("configuration_deepseek.py") && e.original.config().contains("auto_map"))
    f.note("config.json", "vLLM reads configuration_deepseek.py: give --trust-remote-code");
  else
    f.refuse("config.json",
             "vLLM knows model_type deepseek by its configuration_deepseek.py alone, which must "
             "lie beside config.json and be named there under auto_map, as in the published "
             "checkpoint");
}

void check_model_in_vllm(const Export& e, Findings& f) {
  const ModelFacts facts(e);
  check_model_options(facts, families_of_vllm(), "vLLM", f);
  if (facts.family == "qwen2_moe" && !facts.qkv_bias)
    f.refuse("config.json", "vLLM wants biases of q, k and v (qkv_bias: true)");
  if (facts.family == "deepseek_moe") check_deepseek_moe(e, f);
  if (facts.latent) check_latent_in_vllm(e, facts, f);
  if (facts.family == "gpt_oss") check_gpt_oss_in_vllm(e, facts, f);
  if (facts.family == "minimax_m2")
    check_keys(e, "vLLM", {"rotary_dim", "scoring_func", "use_routing_bias"}, f);
  const std::string inside = "model.language_model.";
  if (facts.family == "qwen3_5_moe" && e.model.modules().front().name.starts_with(inside) &&
      count_schemes(e.plan) > 1)
    f.refuse("config.json", fmt::format("vLLM calls {} otherwise, and then does not find which "
                                        "format a module has, unless all have the same",
                                        inside));
}

}  // namespace

void check_vllm(const Export& exported, Findings& findings) {
  check_model_in_vllm(exported, findings);
  check_fused(exported.plan, findings);
  for (const PlannedModule& m : exported.plan.modules) {
    if (!m.format || unknown_to_all(m) || is_role(m, {AQ_ROLE_ROUTER, AQ_ROLE_SHARED_ROUTER}))
      continue;
    const StoredAs s(m, *exported.plan.container);
    if (!is_expert(m))
      check_linear_in_vllm(m, s, findings);
    else
      check_expert_in_vllm(m, s, exported.model.desc().hidden_size, findings);
  }
}

}  // namespace aqhost
