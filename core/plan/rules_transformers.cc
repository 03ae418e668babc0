// The rules of transformers 5.17 with compressed-tensors 0.19 and 0.20, from the source in
// integrations/compressed_tensors.py (the experts of all layers are decoded as one format, and
// stacked) and models/*/modeling_*.py (the options of each family). tests/interop tests most of
// them.

#include <fmt/format.h>

#include "plan/engine_rules.h"

namespace aqhost {
namespace {

void check_expert_in_transformers(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const std::string& name = m.module->name;
  if (s.format == "gptq")
    f.refuse(name, "experts in GPTQ's layout are not read");
  else if (m.format->desc().zero_point())
    f.refuse(name, "zero points of experts are not read");
  else if (s.format == "nvfp4-pack-quantized")
    f.wrong(name, "the global scales of experts are left out, and their weights are then wrong");
  else if (s.format == "mxfp8-quantized" || s.format == "int-quantized")
    f.refuse(name, fmt::format("experts in {} are not read", s.text));
  else if (s.rounds_inputs())
    f.note(name, fmt::format("the inputs of experts are not rounded to {}", s.inputs));
}

/// Models that transformers finds only with code of their own.
void check_own_code(const Export& e, const std::string& type, Findings& f) {
  if (e.has_file("modeling_deepseek.py") && e.original.config().contains("auto_map"))
    f.note("config.json",
           "transformers runs the model's own modeling_deepseek.py: trust_remote_code=True");
  else
    f.refuse("config.json",
             fmt::format("transformers has no model_type {}, and the model brings no "
                         "modeling_deepseek.py, named in config.json under auto_map, of its own",
                         type));
}

void check_model_in_transformers(const Export& e, Findings& f) {
  const ModelFacts facts(e);
  const Json& config = e.original.config();
  if (facts.family == "mixtral" && (facts.qkv_bias || facts.out_bias))
    f.wrong("config.json", "transformers drops the biases of the attention");
  if (facts.family == "qwen2_moe" && facts.out_bias)
    f.wrong("config.json", "transformers drops the biases of the attention's o");
  if (facts.family == "deepseek_moe") check_own_code(e, "deepseek", f);
  if (facts.type == "kimi_k2") check_own_code(e, "kimi_k2", f);
  // rope_parameters would have it otherwise, which rotary_dim does not become
  if (facts.family == "minimax_m2" && config.contains("rotary_dim") &&
      !config.contains("partial_rotary_factor") &&
      e.model.attention(0, 1).rope_dim() != e.model.attention(0, 1).head_dim &&
      !config.value("rope_parameters", Json::object()).contains("partial_rotary_factor"))
    f.wrong("config.json", "transformers ignores rotary_dim, and rotates whole heads");
  if (facts.type == "qwen3_5_moe")
    f.note("config.json",
           "AutoModelForImageTextToText runs a quantized model with its vision tower, and "
           "AutoModelForCausalLM does not");
}

/// Families whose experts transformers reads in one tensor for all, but not one by one.
bool reads_stacked_experts_only(const std::string& family) {
  return family == "gpt_oss" || family == "granitemoe";
}

}  // namespace

void check_transformers(const Export& exported, Findings& findings) {
  check_model_in_transformers(exported, findings);
  Modules experts;
  for (const PlannedModule& m : exported.plan.modules)
    if (is_expert(m)) experts.push_back(&m);
  if (const PlannedModule* different = experts.empty() ? nullptr : other(experts))
    findings.wrong(different->module->name,
                   mixed("all experts of a model", *experts.front(), *different));
  for (const PlannedModule* m : experts)
    if (m->format && reads_stacked_experts_only(exported.model.id()))
      findings.wrong(m->module->name,
                     "the experts of this family are read in one tensor for all, which an export "
                     "with quantized experts has not; random values take their place");
    else if (m->format && !unknown_to_all(*m))
      check_expert_in_transformers(*m, StoredAs(*m, *exported.plan.container), findings);
}

}  // namespace aqhost
