#include "pipeline/loadable.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/nearest.h"

namespace aqhost {
namespace {

using Modules = std::vector<const PlannedModule*>;

/// Sentences by cause: where it was first met, and how often.
class Problems {
 public:
  void add(const std::string& cause, const std::string& where) {
    for (auto& [known, first, count] : found_)
      if (known == cause) {
        count++;
        return;
      }
    found_.emplace_back(cause, where, 1);
  }

  std::vector<std::string> sentences() const {
    std::vector<std::string> result;
    for (const auto& [cause, where, count] : found_)
      result.push_back(count == 1 ? fmt::format("{}: {}", where, cause)
                                  : fmt::format("{} (and {} more): {}", where, count - 1, cause));
    return result;
  }

 private:
  std::vector<std::tuple<std::string, std::string, int>> found_;
};

bool is_role(const PlannedModule& m, std::initializer_list<int32_t> roles) {
  return std::find(roles.begin(), roles.end(), m.module->key.role) != roles.end();
}

/// Modules that an engine makes one of, by layer and what they become.
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

/// What decides how a module is stored.
std::string scheme(const PlannedModule& m) {
  return m.format ? m.format->config().dump() + m.recipe.aq : "";
}

/// The first of `modules` that is stored otherwise than the first of all, or nullptr.
const PlannedModule* other(const Modules& modules) {
  for (const PlannedModule* m : modules)
    if (scheme(*m) != scheme(*modules.front())) return m;
  return nullptr;
}

std::string mixed(const std::string& what, const PlannedModule& a, const PlannedModule& b) {
  return fmt::format("{} must be of one format, and are {} and {}", what, describe(a), describe(b));
}

/// Why there is no kernel for an expert stored so, or "".
std::string no_expert_kernel(const PlannedModule& m) {
  const Json& config = m.format->config();
  const std::string format = config.value("format", "");
  const Json weights = config.value("weights", Json::object());
  if (format == "pack-quantized") {
    const auto bits = weights.value("num_bits", 0);
    const int32_t group = m.format->desc().group_size;
    if (bits != 4 && bits != 8) return fmt::format("experts of {} bits have no kernel", bits);
    if (!weights.value("symmetric", true)) return "experts with zero points have no kernel";
    if (group != -1 && group != 32 && group != 64 && group != 128)
      return fmt::format("experts in groups of {} have no kernel, 32, 64, 128 and -1 have", group);
    if (is_role(m, {AQ_ROLE_FFN_GATE}) && m.module->in_features % 128 != 0)
      return fmt::format("kernels want a hidden size that is a multiple of 128, not {}",
                         m.module->in_features);
    return "";
  }
  const bool activations = m.recipe.aq != "bf16";
  constexpr std::array kAlways{"mxfp4-pack-quantized", "mxfp8-quantized", "nvfp4-pack-quantized"};
  const bool known = std::find(kAlways.begin(), kAlways.end(), format) != kAlways.end();
  const bool w8a8 = activations && (format == "float-quantized" || format == "int-quantized");
  return known || w8a8 ? "" : fmt::format("experts in {} have no kernel", describe(m));
}

/// Why a linear map outside the experts cannot be stored so, or "". GPTQ's kernels have all bits.
std::string no_linear_kernel(const PlannedModule& m, Layout layout) {
  if (layout == Layout::kGptq) return "";
  const std::string format = m.format->config().value("format", "");
  const Json weights = m.format->config().value("weights", Json::object());
  const auto bits = weights.value("num_bits", 0);
  const bool none =
      format == "mxfp6-pack-quantized" || (format == "pack-quantized" && bits != 4 && bits != 8);
  return none ? fmt::format("{} has no kernel", describe(m)) : "";
}

/// What of an expert stored so transformers does not read, or "".
std::string unread_of_expert(const PlannedModule& m, Layout layout) {
  const std::string format = m.format->config().value("format", "");
  if (layout == Layout::kGptq) return "experts in GPTQ's layout are not read";
  if (m.format->desc().zero_point) return "zero points of experts are not read";
  if (format == "nvfp4-pack-quantized")
    return "the global scales of experts are left out, and their weights are then wrong";
  const bool other = format == "mxfp8-quantized" || format == "int-quantized";
  return other ? fmt::format("experts in {} are not read", describe(m)) : "";
}

/// A format of ours that no package knows.
bool unknown_to_all(const PlannedModule& m) {
  return m.format->config().contains("quant_method") &&
         m.format->config()["quant_method"] != "compressed-tensors";
}

void check_common(const Plan& plan, Problems& problems) {
  for (const PlannedModule& m : plan.modules) {
    if (!m.format) continue;
    if (unknown_to_all(m))
      problems.add(fmt::format("{} is a format that aqhost alone reads", describe(m)),
                   m.module->name);
    if (is_role(m, {AQ_ROLE_ROUTER})) problems.add("routers must stay dense", m.module->name);
  }
}

void check_fusing_engine(const Plan& plan, Problems& problems) {
  for (const auto& [key, modules] : fused(plan))
    if (const PlannedModule* different = other(modules))
      problems.add(mixed(key.second, *modules.front(), *different), different->module->name);
  for (const PlannedModule& m : plan.modules) {
    if (!m.format || unknown_to_all(m)) continue;
    if (is_role(m, {AQ_ROLE_SHARED_ROUTER}))
      problems.add("the shared expert's gate must stay dense", m.module->name);
    const std::string cause =
        m.module->key.expert >= 0 ? no_expert_kernel(m) : no_linear_kernel(m, plan.layout);
    if (!cause.empty()) problems.add(cause, m.module->name);
  }
}

void check_transformers(const Plan& plan, Problems& problems) {
  Modules experts;
  for (const PlannedModule& m : plan.modules)
    if (m.module->key.expert >= 0) experts.push_back(&m);
  if (const PlannedModule* different = experts.empty() ? nullptr : other(experts))
    problems.add(mixed("all experts of a model", *experts.front(), *different),
                 different->module->name);
  for (const PlannedModule* m : experts) {
    if (!m->format || unknown_to_all(*m)) continue;
    const std::string cause = unread_of_expert(*m, plan.layout);
    if (!cause.empty()) problems.add(cause, m->module->name);
  }
}

}  // namespace

std::vector<Loadable> loadable(const Plan& plan) {
  Problems fusing, stacking;
  check_common(plan, fusing);
  check_common(plan, stacking);
  check_fusing_engine(plan, fusing);
  check_transformers(plan, stacking);
  return {{"vLLM", "vllm", fusing.sentences()},
          {"SGLang", "sglang", fusing.sentences()},
          {"transformers", "transformers", stacking.sentences()}};
}

void check_target(const std::vector<Loadable>& loads, const std::string& target) {
  std::vector<std::string> known{"any"};
  for (const Loadable& l : loads) {
    known.push_back(l.id);
    if (l.id == target && !l.problems.empty())
      fail("{} will not load this recipe's checkpoint: {}", l.engine, l.problems.front());
  }
  if (std::find(known.begin(), known.end(), target) == known.end())
    throw UsageError(fmt::format("--target \"{}\"{}", target, did_you_mean(target, known)));
}

}  // namespace aqhost
