#include "plan/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "base/nearest.h"

namespace aqhost {
namespace {

/// Formats by id and options, so that equal formats are one object (and their modules may share a
/// solve).
class FormatCache {
 public:
  explicit FormatCache(const Registry& registry) : registry_(registry) {}

  std::shared_ptr<const Format> get(const std::string& id, const Json& options) {
    auto& format = formats_[id + to_text(options)];
    if (!format) format = registry_.create_format(id, options);
    return format;
  }

 private:
  const Registry& registry_;
  std::map<std::string, std::shared_ptr<const Format>> formats_;
};

/// An error in what a recipe says about one module. plan_module() adds the module and the line of
/// the recipe.
class SettingError : public Error {
 public:
  SettingError(std::string key, const std::string& problem)
      : Error(problem), key_(std::move(key)) {}

  const std::string& key() const { return key_; }

 private:
  std::string key_;  // the key in the row of the recipe
};

/// Makes the format with these options. If the plugin refuses them, removes one after another all
/// options that it accepts, so that the error is about one of those that remain.
std::shared_ptr<const Format> make_format(FormatCache& cache, const std::string& id,
                                          const Json& options) {
  Json refused = options;
  std::string problem;
  try {
    return cache.get(id, options);
  } catch (const Error& e) {
    problem = e.what();
  }
  for (const auto& [key, value] : options.items()) {
    Json fewer = refused;
    fewer.erase(key);
    try {
      (void)cache.get(id, fewer);
    } catch (const Error& e) {
      refused = std::move(fewer);
      problem = e.what();
    }
  }
  throw SettingError(refused.empty() ? "wq" : std::prev(refused.end()).key(), problem);
}

bool divides(int64_t group_size, int64_t features) {
  return group_size <= 0 || features % group_size == 0;
}

/// The largest group size that the format allows, that is at most `wanted`, and that divides
/// `features`.
std::optional<int32_t> fitting_group_size(const FormatDesc& desc, int64_t wanted,
                                          int64_t features) {
  std::optional<int32_t> best;
  for (const int32_t size : desc.allowed_group_sizes())
    if (size > 0 && size <= wanted && features % size == 0 && size > best.value_or(0)) best = size;
  return best;
}

/// The group size that the format has in place of `wanted`: MX formats always have blocks of 32,
/// and fp8 has whole rows.
int64_t allowed_group_size(const FormatDesc& desc, int64_t wanted) {
  const auto sizes = desc.allowed_group_sizes();
  if (std::find(sizes.begin(), sizes.end(), wanted) != sizes.end()) return wanted;
  if (std::all_of(sizes.begin(), sizes.end(), [](int32_t size) { return size <= 0; }))
    return desc.group_size;
  return sizes.size() == 1 ? sizes.front() : wanted;
}

/// "-1 (a scale per row)".
std::string size_text(int64_t size) {
  if (size < 0) return fmt::format("{} (a scale per row)", size);
  return size == 0 ? "0 (one scale for the matrix)" : std::to_string(size);
}

/// A note for a group size that was asked for and that the format does not have: lists the sizes
/// that it has.
std::string other_size_note(const FormatDesc& desc, const std::string& id, int64_t asked) {
  std::vector<std::string> sizes;
  for (const int32_t size : desc.allowed_group_sizes()) sizes.push_back(size_text(size));
  return fmt::format("{} has group size {} only, {} was asked", id, fmt::join(sizes, " or "),
                     asked);
}

/// Says why `size` is not possible for a module, and what is possible.
[[noreturn]] void refuse_group_size(const Module& module, const FormatDesc& desc,
                                    const std::string& id, int64_t size,
                                    std::optional<int32_t> smaller) {
  std::vector<std::string> others;
  for (const int32_t other : desc.allowed_group_sizes())
    if (divides(other, module.in_features)) others.push_back(size_text(other));
  const std::string remedy =
      smaller ? fmt::format("{} does (without \"strict\" it is taken)", *smaller)
      : others.empty()
          ? fmt::format("no group size of {} does: give the module another format, or skip it", id)
          : fmt::format("group_size: {} does", fmt::join(others, " or "));
  throw SettingError("group_size",
                     fmt::format("group size {} of {} does not divide its {} input features; {}",
                                 size, id, module.in_features, remedy));
}

/// Adapts the format of one module, made with `options`, to the container of the export. If that is
/// a file made of a checkpoint, the module must fit in both, and its tensors are those of the
/// checkpoint.
void fit_container(PlannedModule& planned, FormatCache& cache, Json options,
                   const Container& container) {
  const std::string why = container.why_no_activations();
  if (planned.activations && !why.empty())
    throw SettingError("aq", fmt::format("aq: {}: {}", planned.recipe.aq, why));
  options.update(container.options_for(*planned.format));
  planned.format = make_format(cache, planned.recipe.wq, options);
  planned.packed = container.tensors_of(planned.stored());
  if (const Container& checkpoint = container.of_checkpoint(); &checkpoint != &container)
    planned.packed = checkpoint.tensors_of(planned.stored());
}

/// Makes the format of one module, with a group size that divides its rows.
void choose_format(PlannedModule& planned, FormatCache& cache, bool strict,
                   const Container& container) {
  const Module& module = *planned.module;
  const std::string& id = planned.recipe.wq;
  Json options = planned.recipe.options;
  Json ungrouped = options;
  ungrouped.erase("group_size");
  // the format with its defaults says which group sizes it allows
  const FormatDesc defaults = make_format(cache, id, ungrouped)->desc();
  const int64_t asked = options.value("group_size", int64_t{defaults.group_size});
  int64_t size = allowed_group_size(defaults, asked);
  if (size != asked && planned.recipe.group_size_asked)
    planned.note = other_size_note(defaults, id, asked);
  if (!divides(size, module.in_features)) {
    const auto smaller = fitting_group_size(defaults, size, module.in_features);
    if (strict || !smaller) refuse_group_size(module, defaults, id, size, smaller);
    planned.note = fmt::format("groups of {}: {} does not divide {} input features", *smaller, size,
                               module.in_features);
    size = *smaller;
  }
  options["group_size"] = size;
  planned.format = make_format(cache, id, options);
  fit_container(planned, cache, options, container);
}

/// Whether inputs can be rounded to a format (made with "dynamic").
bool rounds_inputs(const FormatDesc& desc) {
  return desc.host_rounds() && !desc.two_level() && desc.group_size != 0;
}

/// Makes the format to which the input of one module is rounded.
void choose_activations(PlannedModule& planned, FormatCache& cache) {
  const Module& module = *planned.module;
  const std::string& id = planned.recipe.aq;
  if (module.key.layer < 0)
    throw SettingError(
        "aq",
        fmt::format("aq: {}: only inputs inside the layers can be rounded, use aq: bf16 here", id));
  planned.activations = cache.get(id, {{"dynamic", true}});
  const int32_t size = planned.activations->desc().group_size;
  if (!divides(size, module.in_features))
    throw SettingError(
        "aq", fmt::format("aq: groups of {} of {} do not divide its {} input features", size, id,
                          module.in_features));
  planned.recipe.options["activations"] = id;  // may change how weights are stored
}

/// A key that is equal for modules with one input, which share its rounding and its Hessian.
std::tuple<int32_t, int32_t, int32_t> input_of(const Module& module) {
  const auto& [layer, role, expert, part] = module.key;
  if (role >= AQ_ROLE_CUSTOM) return {layer, expert, AQ_ROLE_CUSTOM + module.input_group};
  return {layer, expert, input_role(role)};
}

/// "recipe.yaml:7: ", the place of the module's `key` or, if no row sets it, of its wq; "" if
/// neither is set.
std::string place(const Recipe& recipe, const Module& module, const std::string& key) {
  std::string where = recipe.where(module.name, key);
  if (where.empty()) where = recipe.where(module.name, "wq");
  return where.empty() ? where : where + ": ";
}

/// Throws an Error if modules with one input disagree on a setting that applies to that input.
void check_shared_inputs(const std::vector<PlannedModule>& modules, const Recipe& recipe) {
  std::map<std::tuple<int32_t, int32_t, int32_t>, const PlannedModule*> first;
  for (const PlannedModule& m : modules) {
    if (!m.format) continue;
    const PlannedModule& other = *first.try_emplace(input_of(*m.module), &m).first->second;
    const auto refuse = [&](const char* setting, const auto& a, const auto& b, const char* why) {
      const bool here = !recipe.where(m.module->name, setting).empty();
      fail(
          "{}{} has {}: {}, but {} has {}: {}; both have the same input, and {}: give them the "
          "same",
          place(recipe, here ? *m.module : *other.module, setting), other.module->name, setting, a,
          m.module->name, setting, b, why);
    };
    if (m.activations != other.activations)
      refuse("aq", other.recipe.aq, m.recipe.aq, "it is rounded once");
    if (m.module->key.expert != AQ_EXPERT_NONE &&
        m.recipe.routing_power != other.recipe.routing_power)
      refuse("routing_power", other.recipe.routing_power, m.recipe.routing_power,
             "it gives one Hessian");
  }
}

/// Throws an Error if a plan has learned rounding as well as rounded activations, which gradients
/// cannot pass.
void check_refined(const std::vector<PlannedModule>& modules, const Recipe& recipe) {
  const auto find = [&](auto property) {
    const auto it = std::find_if(modules.begin(), modules.end(), property);
    return it == modules.end() ? nullptr : &*it;
  };
  const PlannedModule* refined = find([](const PlannedModule& m) { return m.refined(); });
  const PlannedModule* rounded =
      find([](const PlannedModule& m) { return m.activations != nullptr; });
  if (refined != nullptr && rounded != nullptr)
    fail(
        "{}{} has aq: {}, and {} has refine, which does not go with rounded activations in any "
        "module; use aq: bf16 or refine: {{steps: 0}} for all modules",
        place(recipe, *rounded->module, "aq"), rounded->module->name, rounded->recipe.aq,
        refined == rounded ? "it" : refined->module->name);
}

/// The ids that `aq` accepts.
std::vector<std::string> activation_ids(const Registry& registry) {
  std::vector<std::string> ids{"bf16"};
  for (const std::string& id : registry.format_ids()) {
    try {
      if (rounds_inputs(registry.create_format(id, {{"dynamic", true}})->desc())) ids.push_back(id);
    } catch (const Error&) {  // it has no such option
    }
  }
  return ids;
}

void check_formats_known(const Recipe& recipe, const Registry& registry) {
  const std::vector<std::string> known = registry.format_ids();
  for (const auto& [id, where] : recipe.formats())
    if (std::find(known.begin(), known.end(), id) == known.end())
      fail("{}: no plugin offers the format \"{}\"{}", where, id, did_you_mean(id, known));
  const auto aqs = recipe.activation_formats();
  if (aqs.empty()) return;
  const std::vector<std::string> rounding = activation_ids(registry);
  for (const auto& [id, where] : aqs)
    if (std::find(rounding.begin(), rounding.end(), id) == rounding.end())
      fail("{}: aq: {}: inputs are rounded to one of {}, or stay as they are with bf16", where, id,
           fmt::join(rounding.begin() + 1, rounding.end(), ", "));
}

void warn(Plan& plan, const std::string& where, const std::string& message) {
  for (PlanWarning& warning : plan.warnings)
    if (warning.message == message) {
      warning.count++;
      return;
    }
  plan.warnings.push_back({where, message});
}

/// Where the modules of a format have several group sizes, because one size does not divide the
/// rows of some of them, suggests the one size that all of them could have.
void suggest_group_sizes(Plan& plan) {
  std::map<std::pair<std::string, int64_t>, std::vector<const PlannedModule*>> alike;
  for (const PlannedModule& m : plan.modules)
    if (m.format)
      alike[{m.recipe.wq, m.recipe.options.value("group_size", int64_t{0})}].push_back(&m);
  for (const auto& [key, modules] : alike) {
    const FormatDesc& desc = modules.front()->format->desc();
    if (std::all_of(modules.begin(), modules.end(), [&](const PlannedModule* m) {
          return m->format->desc().group_size == desc.group_size;
        }))
      continue;
    std::optional<int32_t> best;
    for (const int32_t size : desc.allowed_group_sizes()) {
      const bool fits = size != 0 && std::all_of(modules.begin(), modules.end(), [&](auto* m) {
                          return divides(size, m->module->in_features);
                        });
      if (fits && size <= key.second && size > best.value_or(-2)) best = size;
    }
    if (best)
      plan.warnings.push_back(
          {key.first, fmt::format("with group_size: {} all {} modules would be of one format",
                                  size_text(*best), modules.size())});
  }
}

PlannedModule plan_module(const Module& module, const Recipe& recipe, const std::string& algorithm,
                          FormatCache& cache, bool strict, const Container& container) {
  PlannedModule planned;
  planned.module = &module;
  planned.recipe = recipe.resolve(module.name);
  if (!algorithm.empty()) planned.recipe.algorithm = algorithm;
  const bool wanted = module.quantize || planned.recipe.named;
  if (!wanted || planned.recipe.skip) return planned;
  try {
    if (planned.recipe.aq != "bf16") choose_activations(planned, cache);
    choose_format(planned, cache, strict, container);
  } catch (const SettingError& e) {
    fail("{}{}: {}", place(recipe, module, e.key()), module.name, e.what());
  } catch (const Error& e) {  // the format cannot store a matrix of this shape
    fail("{}{}: {}", place(recipe, module, "wq"), module.name, e.what());
  }
  return planned;
}

}  // namespace

std::string say_once(const std::string& first, int64_t count, const std::string& message) {
  if (first.empty()) return message;
  return count == 1 ? fmt::format("{}: {}", first, message)
                    : fmt::format("{} (and {} more): {}", first, count - 1, message);
}

std::string PlanWarning::text() const { return say_once(where, count, message); }

std::string describe(const PlannedModule& planned) {
  if (!planned.format) return "dense";
  const int32_t group = planned.format->desc().group_size;
  std::string text = planned.recipe.wq;
  text += group < 0 ? " row" : group == 0 ? " matrix" : " g" + std::to_string(group);
  for (const auto& [key, value] : planned.recipe.options.items())
    if (key != "group_size" && key != "activations")
      text +=
          fmt::format(" {}={}", key, value.is_string() ? value.get<std::string>() : to_text(value));
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
  switch (role) {
    case AQ_ROLE_ATTN_K:
    case AQ_ROLE_ATTN_V:
      return AQ_ROLE_ATTN_Q;
    case AQ_ROLE_ATTN_KV_A:
      return AQ_ROLE_ATTN_Q_A;
    case AQ_ROLE_DELTA_Z:
      return AQ_ROLE_DELTA_QKV;
    case AQ_ROLE_DELTA_A:
      return AQ_ROLE_DELTA_B;
    case AQ_ROLE_FFN_UP:
      return AQ_ROLE_FFN_GATE;
    default:
      return role;
  }
}

int32_t input_role(int32_t role) {
  const int32_t fused = fused_role(role);
  switch (fused) {
    case AQ_ROLE_ATTN_Q_A:
      return AQ_ROLE_ATTN_Q;  // beside kv_a, latent attention has either of the two
    case AQ_ROLE_DELTA_B:
    case AQ_ROLE_DELTA_QKVZ:
    case AQ_ROLE_DELTA_BA:
      return AQ_ROLE_DELTA_QKV;
    case AQ_ROLE_SHARED_ROUTER:
      return AQ_ROLE_ROUTER;
    default:
      return fused;
  }
}

Plan make_plan(const Model& model, const Recipe& recipe, const Registry& registry,
               const std::string& algorithm, const Container& container) {
  check_formats_known(recipe, registry);
  Plan plan;
  plan.settings = recipe.settings();
  plan.container = &container.of_checkpoint();
  FormatCache cache(registry);
  std::vector<std::string> names;
  std::vector<bool> kept;
  for (const Module& module : model.modules()) {
    names.push_back(module.name);
    kept.push_back(!module.quantize);
    plan.modules.push_back(
        plan_module(module, recipe, algorithm, cache, plan.settings.strict, container));
    const PlannedModule& planned = plan.modules.back();
    if (!planned.note.empty()) warn(plan, module.name, planned.note);
    if (planned.format && module.sensitive && planned.format->desc().element_bits < 4)
      warn(plan, module.name,
           fmt::format("the model marks it as sensitive, and {} has less than 4 bits",
                       planned.recipe.wq));
  }
  check_shared_inputs(plan.modules, recipe);
  check_refined(plan.modules, recipe);
  suggest_group_sizes(plan);
  for (const RecipeWarning& warning : recipe.lint(names, kept))
    plan.warnings.push_back({warning.where, warning.message});
  if (plan.quantized_weights() == 0)
    fail("{}{}the recipe leaves nothing to quantize", recipe.file(),
         recipe.file().empty() ? "" : ": ");
  return plan;
}

}  // namespace aqhost
