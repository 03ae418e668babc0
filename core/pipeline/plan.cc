#include "pipeline/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "base/nearest.h"

namespace aqhost {
namespace {

/// Formats by id and options, so that equal ones are one object (and may share a solve).
class FormatCache {
 public:
  explicit FormatCache(const Registry& registry) : registry_(registry) {}

  std::shared_ptr<const Format> get(const std::string& id, const Json& options) {
    auto& format = formats_[id + options.dump()];
    if (!format) format = registry_.create_format(id, options);
    return format;
  }

 private:
  const Registry& registry_;
  std::map<std::string, std::shared_ptr<const Format>> formats_;
};

bool divides(int64_t group_size, int64_t features) {
  return group_size <= 0 || features % group_size == 0;
}

/// The largest group size that the format allows, is at most `wanted`, and divides `features`.
std::optional<int32_t> fitting_group_size(const FormatDesc& desc, int64_t wanted,
                                          int64_t features) {
  std::optional<int32_t> best;
  for (const int32_t size : desc.group_sizes)
    if (size > 0 && size <= wanted && features % size == 0 && size > best.value_or(0)) best = size;
  return best;
}

/// `wanted` as the format can take it: MX blocks are 32, whatever a recipe asks, and fp8 has whole
/// rows.
int64_t allowed_group_size(const FormatDesc& desc, int64_t wanted) {
  const auto& sizes = desc.group_sizes;
  if (std::find(sizes.begin(), sizes.end(), wanted) != sizes.end()) return wanted;
  if (std::all_of(sizes.begin(), sizes.end(), [](int32_t size) { return size <= 0; }))
    return desc.group_size;
  return sizes.size() == 1 ? sizes.front() : wanted;
}

/// The format of one module as GPTQ's checkpoint format has it: with float16 scales.
void choose_gptq(PlannedModule& planned, FormatCache& cache, Json options) {
  const Module& module = *planned.module;
  if (planned.activations)
    fail("{}: aq: {}: GPTQ's checkpoint format has no rounded activations", module.name,
         planned.recipe.aq);
  if (planned.format->desc().element_kind == AQ_ELEM_INT) {
    options["scale_dtype"] = "float16";
    planned.format = cache.get(planned.recipe.wq, options);
  }
  try {
    planned.packed = stored_tensors(Layout::kGptq, *planned.format, nullptr, module.out_features,
                                    module.in_features);
  } catch (const Error& e) {
    fail("{}: {}", module.name, e.what());
  }
}

/// Makes the format of one module, with a group size that divides its rows.
void choose_format(PlannedModule& planned, FormatCache& cache, bool strict, Layout layout) {
  const Module& module = *planned.module;
  const std::string& id = planned.recipe.wq;
  Json options = planned.recipe.options;
  // the format with its defaults says which group sizes there are
  const FormatDesc defaults = cache
                                  .get(id,
                                       [&] {
                                         Json other = options;
                                         other.erase("group_size");
                                         return other;
                                       }())
                                  ->desc();
  const int64_t asked = options.value("group_size", int64_t{defaults.group_size});
  int64_t size = allowed_group_size(defaults, asked);
  if (size != asked)
    planned.note = fmt::format("group size {}: {} has no other ({} asked)", size, id, asked);
  if (!divides(size, module.in_features)) {
    const auto smaller = fitting_group_size(defaults, size, module.in_features);
    if (strict || !smaller)
      fail("{}: group size {} of {} does not divide its {} input features{}", module.name, size, id,
           module.in_features,
           smaller ? fmt::format("; {} does (without \"strict\" it is taken)", *smaller)
                   : fmt::format(", nor does any smaller of: {}",
                                 fmt::join(defaults.group_sizes, ", ")));
    planned.note =
        fmt::format("group size {}: {} does not divide {}", *smaller, size, module.in_features);
    size = *smaller;
  }
  options["group_size"] = size;
  planned.format = cache.get(id, options);
  if (layout == Layout::kGptq) {
    choose_gptq(planned, cache, options);
    return;
  }
  planned.packed = stored_tensors(layout, *planned.format, planned.activations.get(),
                                  module.out_features, module.in_features);
}

/// Makes the format that the input of one module is rounded to.
void choose_activations(PlannedModule& planned, FormatCache& cache) {
  const Module& module = *planned.module;
  const std::string& id = planned.recipe.aq;
  if (module.key.layer < 0)
    fail("{}: aq: {}: only inputs inside the layers can be rounded, use aq: bf16 here", module.name,
         id);
  planned.activations = cache.get(id, {{"dynamic", true}});
  const int32_t size = planned.activations->desc().group_size;
  if (!divides(size, module.in_features))
    fail("{}: aq: groups of {} of {} do not divide its {} input features", module.name, size, id,
         module.in_features);
  planned.recipe.options["activations"] = id;  // the weights may be stored otherwise for it
}

/// What modules with one input, which share its rounding and its Hessian, have in common.
std::tuple<int32_t, int32_t, int32_t> input_of(const Module& module) {
  const auto& [layer, role, expert, part] = module.key;
  if (role >= AQ_ROLE_CUSTOM) return {layer, expert, AQ_ROLE_CUSTOM + module.input_group};
  const bool shared_router = role == AQ_ROLE_SHARED_ROUTER;
  return {layer, expert, shared_router ? int32_t{AQ_ROLE_ROUTER} : fused_role(role)};
}

/// Error if modules with one input disagree on what is one thing for all of them.
void check_shared_inputs(const std::vector<PlannedModule>& modules) {
  std::map<std::tuple<int32_t, int32_t, int32_t>, const PlannedModule*> first;
  for (const PlannedModule& m : modules) {
    if (!m.format) continue;
    const PlannedModule& other = *first.try_emplace(input_of(*m.module), &m).first->second;
    const auto refuse = [&](const char* setting, const auto& a, const auto& b, const char* why) {
      fail("{} has {}: {}, but {} has {}: {}; both have the same input, and {}: give them the same",
           other.module->name, setting, a, m.module->name, setting, b, why);
    };
    if (m.activations != other.activations)
      refuse("aq", other.recipe.aq, m.recipe.aq, "it is rounded once");
    if (m.module->key.expert != AQ_EXPERT_NONE &&
        m.recipe.routing_power != other.recipe.routing_power)
      refuse("routing_power", other.recipe.routing_power, m.recipe.routing_power,
             "it gives one Hessian");
  }
}

/// Error if learned rounding, whose gradients do not pass rounded activations, meets some.
void check_refined(const std::vector<PlannedModule>& modules) {
  const auto find = [&](auto property) {
    const auto it = std::find_if(modules.begin(), modules.end(), property);
    return it == modules.end() ? nullptr : &*it;
  };
  const PlannedModule* refined = find([](const PlannedModule& m) { return m.refined(); });
  const PlannedModule* rounded =
      find([](const PlannedModule& m) { return m.activations != nullptr; });
  if (refined != nullptr && rounded != nullptr)
    fail(
        "{} has refine, which does not go with rounded activations, and {} has aq: {}; use aq: "
        "bf16 or refine: {{steps: 0}} for all modules",
        refined->module->name, rounded->module->name, rounded->recipe.aq);
}

void check_formats_known(const Recipe& recipe, const Registry& registry) {
  const std::vector<std::string> known = registry.format_ids();
  for (const auto& [id, where] : recipe.formats())
    if (std::find(known.begin(), known.end(), id) == known.end())
      fail("{}: no plugin offers the format \"{}\"{}", where, id, did_you_mean(id, known));
}

}  // namespace

std::string describe(const PlannedModule& planned) {
  if (!planned.format) return "dense";
  const int32_t group = planned.format->desc().group_size;
  std::string text = planned.recipe.wq;
  text += group < 0 ? " row" : group == 0 ? " matrix" : " g" + std::to_string(group);
  for (const auto& [key, value] : planned.recipe.options.items())
    if (key != "group_size" && key != "activations")
      text +=
          fmt::format(" {}={}", key, value.is_string() ? value.get<std::string>() : value.dump());
  if (planned.recipe.aq != "bf16") text += " aq=" + planned.recipe.aq;
  return text;
}

int64_t Plan::quantized_weights() const {
  int64_t n = 0;
  for (const PlannedModule& m : modules)
    if (m.format) n += m.weights();
  return n;
}

double Plan::bits_per_weight() const {
  int64_t bits = 0;
  for (const PlannedModule& m : modules)
    if (m.format) bits += m.stored_bits();
  return static_cast<double>(bits) / static_cast<double>(std::max<int64_t>(1, quantized_weights()));
}

bool Plan::needs_calibration() const {
  return std::any_of(modules.begin(), modules.end(), [](const PlannedModule& m) {
    return m.format && m.recipe.algorithm == "gptq";
  });
}

bool Plan::observes_inputs() const {
  return std::any_of(modules.begin(), modules.end(),
                     [](const PlannedModule& m) { return m.observes_input(); });
}

int32_t fused_role(int32_t role) {
  if (role == AQ_ROLE_ATTN_K || role == AQ_ROLE_ATTN_V) return AQ_ROLE_ATTN_Q;
  return role == AQ_ROLE_FFN_UP ? int32_t{AQ_ROLE_FFN_GATE} : role;
}

Plan make_plan(const Model& model, const Recipe& recipe, const Registry& registry,
               const std::string& algorithm, Layout layout) {
  check_formats_known(recipe, registry);
  Plan plan;
  plan.settings = recipe.settings();
  plan.layout = layout;
  FormatCache cache(registry);
  std::vector<std::string> names;
  for (const Module& module : model.modules()) {
    names.push_back(module.name);
    PlannedModule planned;
    planned.module = &module;
    planned.recipe = recipe.resolve(module.name);
    if (!algorithm.empty()) planned.recipe.algorithm = algorithm;
    const bool wanted = module.quantize || planned.recipe.named;
    if (wanted && !planned.recipe.skip) {
      if (planned.recipe.aq != "bf16") choose_activations(planned, cache);
      choose_format(planned, cache, plan.settings.strict, layout);
      if (!planned.note.empty()) plan.warnings.push_back({module.name, planned.note});
      if (module.sensitive && planned.format->desc().element_bits < 4)
        plan.warnings.push_back({module.name, fmt::format("the model marks it as sensitive, and {} "
                                                          "has less than 4 bits",
                                                          planned.recipe.wq)});
    }
    plan.modules.push_back(std::move(planned));
  }
  check_shared_inputs(plan.modules);
  check_refined(plan.modules);
  for (const RecipeWarning& warning : recipe.lint(names))
    plan.warnings.push_back({warning.where, warning.message});
  if (plan.quantized_weights() == 0) fail("the recipe leaves nothing to quantize");
  return plan;
}

}  // namespace aqhost
