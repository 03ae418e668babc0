#include "plan/loadable.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/nearest.h"
#include "plan/engine_rules.h"

namespace aqhost {

void Findings::add(Sentences& sentences, const std::string& where, const std::string& cause) {
  for (PlanWarning& known : sentences)
    if (known.message == cause) {
      known.count++;
      return;
    }
  sentences.push_back({where, cause});
}

void Findings::move_to(Loadable& loadable) const {
  for (const PlanWarning& s : refused_) loadable.refused.push_back(s.text());
  for (const PlanWarning& s : wrong_) loadable.wrong.push_back(s.text());
  for (const PlanWarning& s : notes_) loadable.notes.push_back(s.text());
}

bool Export::has_file(const char* name) const {
  std::error_code ignored;
  return std::filesystem::is_regular_file(std::filesystem::path(original.directory()) / name,
                                          ignored);
}

StoredAs::StoredAs(const PlannedModule& m, const Container& container)
    : format(container.format_name(*m.format)),
      group(m.format->desc().group_size),
      inputs(m.recipe.aq),
      text(describe(m)) {
  const Json weights = m.format->config().value("weights", Json::object());
  bits = weights.value("num_bits", int64_t{0});
  symmetric = weights.value("symmetric", true);
}

ModelFacts::ModelFacts(const Model& model)
    : family(model.id()), tied(model.desc().tied_embeddings), norm_eps(model.desc().norm_eps) {
  for (const Module& m : model.modules()) {
    if (!m.bias) continue;
    const int32_t role = m.key.role;
    qkv_bias =
        qkv_bias || role == AQ_ROLE_ATTN_Q || role == AQ_ROLE_ATTN_K || role == AQ_ROLE_ATTN_V;
    out_bias = out_bias || role == AQ_ROLE_ATTN_O;
  }
  for (int32_t l = 0; l < model.desc().n_layers; l++) {
    const FfnDesc& ffn = model.ffn(l);
    silu = silu && ffn.activation == AQ_ACT_SILU_GLU;
    norm_topk = norm_topk || (ffn.kind == AQ_FFN_MOE && ffn.norm_topk);
  }
  const AttentionDesc attention = model.attention(0, 1);
  if (attention.kind != AQ_ATTN_STANDARD) return;
  clip_qkv = attention.clip_qkv;
  heads_fill_hidden = int64_t{attention.n_heads} * attention.head_dim == model.desc().hidden_size;
}

bool is_role(const PlannedModule& m, std::initializer_list<int32_t> roles) {
  return std::find(roles.begin(), roles.end(), m.module->key.role) != roles.end();
}

bool unknown_to_all(const PlannedModule& m) {
  return m.format->config().contains("quant_method") &&
         m.format->config()["quant_method"] != "compressed-tensors";
}

std::string scheme(const PlannedModule& m) {
  return m.format ? m.format->config().dump() + m.recipe.aq : "";
}

const PlannedModule* other(const Modules& modules) {
  for (const PlannedModule* m : modules)
    if (scheme(*m) != scheme(*modules.front())) return m;
  return nullptr;
}

std::map<std::pair<int32_t, std::string>, Modules> fused(const Plan& plan) {
  std::map<std::pair<int32_t, std::string>, Modules> groups;
  for (const PlannedModule& m : plan.modules) {
    const aq_tensor_key& key = m.module->key;
    if (key.expert >= 0)
      groups[{key.layer, "the experts of a layer"}].push_back(&m);
    else if (is_role(m, {AQ_ROLE_ATTN_Q, AQ_ROLE_ATTN_K, AQ_ROLE_ATTN_V}))
      groups[{key.layer, "q, k and v"}].push_back(&m);
    else if (is_role(m, {AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}))
      groups[{key.layer, "gate and up of a dense or shared FFN"}].push_back(&m);
  }
  return groups;
}

std::string no_kernel(const char* what, const StoredAs& s) {
  return fmt::format("{} in {} have no kernel", what, s.text);
}

std::string mixed(const std::string& what, const PlannedModule& a, const PlannedModule& b) {
  return fmt::format("{} must be of one format, and are {} and {}", what, describe(a), describe(b));
}

void check_fused(const Plan& plan, Findings& findings) {
  for (const auto& [key, modules] : fused(plan))
    if (const PlannedModule* different = other(modules))
      findings.refuse(different->module->name, mixed(key.second, *modules.front(), *different));
  for (const PlannedModule& m : plan.modules)
    if (m.format && is_role(m, {AQ_ROLE_SHARED_ROUTER}))
      findings.refuse(m.module->name, "the shared expert's gate must stay dense");
}

void check_common_model_options(const ModelFacts& facts, const char* engine, Findings& findings) {
  const auto wrong = [&](const std::string& what) {
    findings.wrong("config.json", fmt::format("{} {}", engine, what));
  };
  const bool qwen = facts.family == "qwen2_moe";
  if ((facts.qkv_bias && !qwen) || facts.out_bias)
    wrong(fmt::format("drops the biases of {}",
                      facts.qkv_bias && !qwen ? "the attention" : "the attention's o"));
  if (!facts.silu) {
    if (qwen || facts.family == "deepseek_moe")
      findings.refuse("config.json", fmt::format("{} has no hidden_act but silu", engine));
    else
      wrong("computes silu, whatever hidden_act says");
  }
  if (facts.family != "olmoe") return;
  if (facts.norm_topk) wrong("ignores norm_topk_prob");
  if (facts.clip_qkv > 0) wrong("ignores clip_qkv");
  if (facts.norm_eps != 1e-5F) wrong("takes 1e-5 for rms_norm_eps");
}

namespace {

/// Checks what no engine supports.
void check_common(const Plan& plan, Findings& findings) {
  for (const PlannedModule& m : plan.modules) {
    if (!m.format) continue;
    if (unknown_to_all(m))
      findings.refuse(m.module->name,
                      fmt::format("{} is a format that aqhost alone reads", describe(m)));
    if (is_role(m, {AQ_ROLE_ROUTER})) findings.refuse(m.module->name, "routers must stay dense");
  }
}

/// Checks whether the engine recognises the model as what it is. The families of other plugins are
/// not known here.
void check_family(const Export& e, const Loadable& engine, Findings& findings) {
  const Model& model = e.model;
  const std::map<std::string, std::string> types{{"olmoe", "olmoe"},
                                                 {"mixtral", "mixtral"},
                                                 {"qwen2_moe", "qwen2_moe"},
                                                 {"deepseek_moe", "deepseek"}};
  if (const auto known = types.find(model.id()); known != types.end()) {
    const Json type = e.original.config().value("model_type", Json());
    if (type != known->second)
      findings.refuse(
          "config.json",
          fmt::format("model_type is {}, and {} finds this family under \"{}\"",
                      type.is_null() ? "missing" : type.dump(), engine.engine, known->second));
    return;
  }
  findings.note("config.json", fmt::format("it is not known here whether {} has models of family "
                                           "{}; what is said is true of the formats",
                                           engine.name(), model.id()));
}

}  // namespace

std::vector<std::string> Loadable::problems() const {
  std::vector<std::string> all = refused;
  all.insert(all.end(), wrong.begin(), wrong.end());
  return all;
}

std::string Loadable::verdict() const {
  return name() + (refused.empty() ? " will load the result and give wrong answers"
                                   : " will not load the result");
}

std::vector<Loadable> loadable(const Plan& plan, const Model& model, const Source& original) {
  const Export exported{plan, model, original};
  std::vector<Loadable> engines{
      {.engine = "vLLM", .version = "0.32", .id = "vllm", .run = true},
      {.engine = "SGLang", .version = "0.5.23", .id = "sglang"},
      {.engine = "transformers", .version = "5.17", .id = "transformers", .run = true}};
  constexpr decltype(&check_vllm) kRules[] = {check_vllm, check_sglang, check_transformers};
  for (std::size_t i = 0; i < engines.size(); i++) {
    Findings findings;
    check_common(plan, findings);
    check_family(exported, engines[i], findings);
    kRules[i](exported, findings);
    findings.move_to(engines[i]);
  }
  return engines;
}

void check_target(const std::vector<Loadable>& loads, const std::string& target) {
  std::vector<std::string> known{"any"};
  for (const Loadable& l : loads) {
    known.push_back(l.id);
    if (l.id == target && !l.loads()) fail("{}: {}", l.verdict(), l.problems().front());
  }
  if (std::find(known.begin(), known.end(), target) == known.end())
    throw UsageError(fmt::format("--target \"{}\"{}", target, did_you_mean(target, known)));
}

}  // namespace aqhost
