#include "plan/loadable.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

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

ModelFacts::ModelFacts(const Export& exported)
    : family(exported.model.id()),
      tied(exported.model.desc().tied_embeddings),
      norm_eps(exported.model.desc().norm_eps) {
  const Model& model = exported.model;
  if (const Json& config = exported.original.config();
      config.contains("model_type") && config["model_type"].is_string())
    type = config["model_type"].get<std::string>();
  for (const Module& m : model.modules()) {
    if (!m.bias) continue;
    const int32_t role = m.key.role;
    const bool first = fused_role(role) == AQ_ROLE_ATTN_Q || fused_role(role) == AQ_ROLE_ATTN_Q_A;
    const bool ffn = fused_role(role) == AQ_ROLE_FFN_GATE || role == AQ_ROLE_FFN_DOWN;
    qkv_bias = qkv_bias || first;
    out_bias = out_bias || role == AQ_ROLE_ATTN_O;
    ffn_bias = ffn_bias || (ffn && m.key.expert < 0);
    head_bias = head_bias || role == AQ_ROLE_LM_HEAD;
  }
  for (int32_t l = 0; l < model.desc().n_layers; l++) {
    const FfnDesc& ffn = model.ffn(l);
    silu = silu && (ffn.activation == AQ_ACT_SILU_GLU || ffn.activation == AQ_ACT_CLAMPED_SWIGLU);
    norm_topk = norm_topk || (ffn.kind == AQ_FFN_MOE && ffn.norm_topk);
  }
  const AttentionDesc attention = model.attention(0, 1);
  latent = attention.kind == AQ_ATTN_LATENT;
  rope_interleaved = attention.rope_interleaved;
  latent_eps = attention.latent_eps;
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
    else if (is_role(m, {AQ_ROLE_ATTN_Q_A, AQ_ROLE_ATTN_KV_A}))
      groups[{key.layer, "q_a and kv_a"}].push_back(&m);
    else if (is_role(m, {AQ_ROLE_DELTA_QKV, AQ_ROLE_DELTA_Z}))
      groups[{key.layer, "in_proj_qkv and in_proj_z"}].push_back(&m);
    else if (is_role(m, {AQ_ROLE_DELTA_B, AQ_ROLE_DELTA_A}))
      groups[{key.layer, "in_proj_b and in_proj_a"}].push_back(&m);
    else if (is_role(m, {AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP}))
      groups[{key.layer, "gate and up of a dense or shared FFN"}].push_back(&m);
  }
  return groups;
}

std::string no_kernel(const char* what, const StoredAs& s) {
  return fmt::format("{} in {} have no kernel", what, s.text);
}

namespace {

/// The group size that fits both modules, if they have one format and differ only because the
/// usual group did not fit both; else 0.
int32_t common_group(const PlannedModule& a, const PlannedModule& b) {
  if (!a.format || !b.format || a.recipe.wq != b.recipe.wq) return 0;
  if (a.recipe.group_size_asked && b.recipe.group_size_asked) return 0;
  const FormatDesc &of_a = a.format->desc(), &of_b = b.format->desc();
  int32_t best = 0;
  for (const int32_t size : of_a.allowed_group_sizes())
    if (size > best && size <= std::max(of_a.group_size, of_b.group_size) &&
        a.module->in_features % size == 0 && b.module->in_features % size == 0)
      best = size;
  return best;
}

}  // namespace

std::string mixed(const std::string& what, const PlannedModule& a, const PlannedModule& b) {
  const int32_t common = common_group(a, b);
  return fmt::format("{} must be of one format, and are {} and {}{}", what, describe(a),
                     describe(b),
                     common > 0 ? fmt::format("; group_size: {} fits all of them", common) : "");
}

void check_fused(const Plan& plan, Findings& findings) {
  for (const auto& [key, modules] : fused(plan))
    if (const PlannedModule* different = other(modules))
      findings.refuse(different->module->name, mixed(key.second, *modules.front(), *different));
  for (const PlannedModule& m : plan.modules)
    if (m.format && is_role(m, {AQ_ROLE_SHARED_ROUTER}))
      findings.refuse(m.module->name, "the shared expert's gate must stay dense");
}

void check_model_options(const ModelFacts& facts, const FamiliesOptions& families,
                         const char* engine, Findings& findings) {
  const auto found =
      families.contains(facts.type) ? families.find(facts.type) : families.find(facts.family);
  if (found == families.end()) return;
  const FamilyOptions& options = found->second;
  const auto wrong = [&](const std::string& what) {
    findings.wrong("config.json", fmt::format("{} {}", engine, what));
  };
  const bool drops_qkv = facts.qkv_bias && !options.qkv_bias;
  if (drops_qkv || (facts.out_bias && !options.out_bias))
    wrong(fmt::format("drops the biases of {}", drops_qkv ? "the attention" : "the attention's o"));
  if (facts.ffn_bias && !options.ffn_bias) wrong("drops the biases of dense and shared FFNs");
  if (facts.head_bias) wrong("drops the bias of lm_head");
  if (!facts.silu) {
    if (options.acts)
      findings.refuse("config.json", fmt::format("{} has no hidden_act but silu", engine));
    else
      wrong("computes silu, whatever hidden_act says");
  }
  if (facts.tied && !options.tied)
    wrong(
        fmt::format("does not tie the head of {} to its embedding, and leaves the head without "
                    "values",
                    facts.family));
  if (!facts.heads_fill_hidden && !options.head_dim)
    findings.refuse("config.json",
                    fmt::format("{} takes hidden_size / num_attention_heads for head_dim", engine));
  if (facts.latent && facts.latent_eps != facts.norm_eps)
    findings.note("config.json",
                  fmt::format("{} takes rms_norm_eps for the norms inside latent attention, where "
                              "transformers and eval take {:g}",
                              engine, facts.latent_eps));
  if (facts.family != "olmoe") return;
  if (facts.norm_topk) wrong("ignores norm_topk_prob");
  if (facts.clip_qkv > 0) wrong("ignores clip_qkv");
  if (facts.norm_eps != 1e-5F) wrong("takes 1e-5 for rms_norm_eps");
}

void check_keys(const Export& exported, const char* engine, std::initializer_list<const char*> keys,
                Findings& findings) {
  const Json& config = exported.original.config();
  std::vector<std::string> missing;
  for (const char* key : keys)
    if (config.value(key, Json()).is_null()) missing.emplace_back(key);
  if (!missing.empty())
    findings.refuse("config.json",
                    fmt::format("{} reads {}, which the published config.json has, and this one "
                                "has not",
                                engine, fmt::join(missing, ", ")));
}

std::size_t count_schemes(const Plan& plan) {
  std::set<std::string> schemes;
  for (const PlannedModule& m : plan.modules)
    if (m.format) schemes.insert(scheme(m));
  return schemes.size();
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

/// The values of model_type by which engines find a family, indexed by the id of the family.
const std::map<std::string, std::vector<std::string>>& model_types() {
  static const std::map<std::string, std::vector<std::string>> types{
      {"olmoe", {"olmoe"}},
      {"mixtral", {"mixtral"}},
      {"qwen2_moe", {"qwen2_moe"}},
      {"deepseek_moe", {"deepseek"}},
      {"qwen3_moe", {"qwen3_moe"}},
      {"qwen3_next", {"qwen3_next"}},
      {"qwen3_5_moe", {"qwen3_5_moe", "qwen3_5_moe_text"}},
      {"deepseek_v2", {"deepseek_v2"}},
      {"deepseek_v3", {"deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe_lite"}},
      {"glm4_moe", {"glm4_moe"}},
      {"gpt_oss", {"gpt_oss"}},
      {"minimax_m2", {"minimax_m2"}},
      {"granitemoe", {"granitemoe"}},
      {"ernie4_5_moe", {"ernie4_5_moe"}}};
  return types;
}

/// Checks whether the engine recognises the model as what it is. The families of other plugins are
/// not known here.
void check_family(const Export& e, const Loadable& engine, Findings& findings) {
  const Model& model = e.model;
  if (const auto known = model_types().find(model.id()); known != model_types().end()) {
    const Json type = e.original.config().value("model_type", Json());
    if (std::none_of(known->second.begin(), known->second.end(),
                     [&](const std::string& name) { return type == name; }))
      findings.refuse("config.json",
                      fmt::format("model_type is {}, and {} finds this family under \"{}\"",
                                  type.is_null() ? "missing" : type.dump(), engine.engine,
                                  fmt::join(known->second, "\" or \"")));
    if (type == "deepseek_v32" && engine.id != "transformers")
      findings.note("config.json", fmt::format("it was not checked what {} makes of the indexer of "
                                               "DeepSeek-V3.2; the rest is said of DeepSeek-V3",
                                               engine.name()));
    return;
  }
  findings.note("config.json", fmt::format("it is not known here whether {} has models of family "
                                           "{}; what is said is true of the formats",
                                           engine.name(), model.id()));
}

/// Whether exports of this family were loaded in the engine. Of the others, only the engine's
/// source was read.
bool was_run(const std::string& engine, const std::string& family) {
  static const std::set<std::string> vllm{"olmoe", "mixtral", "qwen2_moe", "deepseek_moe"};
  return engine == "transformers" || (engine == "vllm" && vllm.contains(family));
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

std::vector<Loadable> loadable(const Plan& plan, const Model& model, const Source& original,
                               int32_t gpus) {
  const Export exported{plan, model, original};
  std::vector<Loadable> engines{
      {.engine = "vLLM", .version = "0.32", .id = "vllm"},
      {.engine = "SGLang", .version = "0.5.23", .id = "sglang"},
      {.engine = "transformers", .version = "5.17", .id = "transformers"}};
  constexpr decltype(&check_vllm) kRules[] = {check_vllm, check_sglang, check_transformers};
  for (std::size_t i = 0; i < engines.size(); i++) {
    engines[i].run = was_run(engines[i].id, model.id());
    Findings findings;
    check_common(plan, findings);
    check_family(exported, engines[i], findings);
    kRules[i](exported, findings);
    if (gpus > 1 && engines[i].id != "transformers") check_split(exported, gpus, findings);
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
