// The rules of SGLang 0.5.23 on an NVIDIA GPU, from the source in sglang/srt:
// layers/quantization/compressed_tensors (get_moe_scheme, _get_scheme_from_parts and schemes/),
// layers/quantization/gptq/gptq.py, layers/quantization/marlin_utils.py and models/. No export was
// run in SGLang.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "plan/engine_rules.h"

namespace aqhost {
namespace {

bool marlin_has(int32_t group) {
  return std::find(kMarlinGroups.begin(), kMarlinGroups.end(), group) != kMarlinGroups.end();
}

/// Integers in packed words, or in GPTQ's layout. They run with Marlin; there is no fallback to
/// another kernel.
void check_packed_expert_in_sglang(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const std::string& name = m.module->name;
  const int64_t rows = m.module->out_features, cols = m.module->in_features;
  if (s.rounds_inputs()) {
    if (s.bits == 4 && s.symmetric && s.group == 128 && (s.inputs == "int8" || s.inputs == "fp8"))
      f.note(name, fmt::format("experts in {} run on GPUs of compute capability 9.0 (Hopper) "
                               "alone, with inputs in FP8",
                               s.text));
    else
      f.refuse(name, no_kernel("experts", s));
  } else if (s.bits != 4 && s.bits != 8) {
    f.refuse(name, fmt::format("experts of {} bits have no kernel", s.bits));
  } else if (!s.symmetric) {
    f.wrong(name, "the zero points of experts are unpacked in AWQ's order, which is another");
  } else if (!marlin_has(s.group)) {
    f.refuse(name, fmt::format("experts in groups of {} have no kernel, 32, 64, 128 and -1 have",
                               s.group));
  } else if (is_role(m, {AQ_ROLE_FFN_DOWN}) ? rows % 128 != 0 || cols % 64 != 0 : cols % 128 != 0) {
    f.refuse(name,
             "kernels of experts want a hidden size that is a multiple of 128, and an inner "
             "size that is one of 64");
  }
}

void check_expert_in_sglang(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const std::string& name = m.module->name;
  if (s.format == "pack-quantized" || s.format == "gptq")
    check_packed_expert_in_sglang(m, s, f);
  else if (s.format == "nvfp4-pack-quantized" && (!s.rounds_inputs() || s.inputs == "nvfp4"))
    return;
  else if (s.format == "int-quantized")
    f.refuse(name, "experts in int8 with inputs in int8 have kernels on NPUs alone");
  else if (s.format != "float-quantized" || s.inputs != "fp8" || s.group != -1)
    f.refuse(name, no_kernel("experts", s));
}

void check_linear_in_sglang(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const bool packed = s.format == "pack-quantized" || s.format == "gptq";
  const bool marlin = (s.bits == 4 || (s.bits == 8 && s.symmetric)) && marlin_has(s.group);
  const bool runs =
      (packed && marlin && !s.rounds_inputs()) ||
      (s.format == "nvfp4-pack-quantized" && (!s.rounds_inputs() || s.inputs == "nvfp4")) ||
      (s.format == "naive-quantized" && !s.rounds_inputs()) ||
      (s.format == "float-quantized" && s.inputs == "fp8") ||
      (s.format == "int-quantized" && s.inputs == "int8");
  if (!runs) f.refuse(m.module->name, no_kernel("linear maps", s));
}

/// Checks what SGLang takes from the top of the config instead of from the experts' own group.
void check_whole(const Plan& plan, const Model& model, Findings& f) {
  std::set<std::string> schemes, files;
  Modules experts;
  for (const PlannedModule& m : plan.modules) {
    if (is_expert(m)) experts.push_back(&m);
    if (!m.format) continue;
    schemes.insert(scheme(m));
    files.insert(StoredAs(m, *plan.container).format);
  }
  if (experts.empty() || !experts.front()->format) return;
  const PlannedModule& first = *experts.front();
  const StoredAs s(first, *plan.container);
  if (s.format == "gptq") {
    if (const PlannedModule* different = other(experts))
      f.refuse(different->module->name,
               mixed("in GPTQ's layout all experts of a model", first, *different));
    return;
  }
  if (s.format == "pack-quantized" && !s.rounds_inputs() && files.size() > 1)
    f.refuse(first.module->name,
             fmt::format("experts in {} are accepted only if all quantized modules of the "
                         "checkpoint are integers without rounded inputs",
                         s.text));
  if (s.format == "pack-quantized" && s.rounds_inputs() && schemes.size() > 1)
    f.refuse(first.module->name,
             fmt::format("experts in {} are accepted only if all quantized modules of the "
                         "checkpoint are in that format",
                         s.text));
  if (model.id() == "mixtral" && schemes.size() > 1)
    f.refuse(first.module->name,
             "the formats of experts are looked up under gate_proj, up_proj and down_proj, which "
             "Mixtral calls otherwise, so all quantized modules must be of one format");
}

}  // namespace

void check_sglang(const Export& exported, Findings& findings) {
  const ModelFacts facts(exported.model);
  check_common_model_options(facts, "SGLang", findings);
  if (facts.tied)
    findings.wrong(
        "config.json",
        fmt::format("SGLang does not tie the head of {} to its embedding, and leaves the "
                    "head without values",
                    facts.family));
  if (!facts.heads_fill_hidden)
    findings.refuse("config.json", "SGLang takes hidden_size / num_attention_heads for head_dim");
  if (facts.family == "deepseek_moe")
    findings.refuse("config.json", "SGLang has DeepSeek-MoE with unquantized experts only");
  check_fused(exported.plan, findings);
  check_whole(exported.plan, exported.model, findings);
  for (const PlannedModule& m : exported.plan.modules) {
    if (!m.format || unknown_to_all(m) || is_role(m, {AQ_ROLE_ROUTER, AQ_ROLE_SHARED_ROUTER}))
      continue;
    const StoredAs s(m, *exported.plan.container);
    if (is_expert(m))
      check_expert_in_sglang(m, s, findings);
    else
      check_linear_in_sglang(m, s, findings);
  }
}

}  // namespace aqhost
