#include "plan/loadable.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/nearest.h"
#include "export/gguf_convert.h"
#include "plan/engine.h"
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

namespace {

using Modules = std::vector<const PlannedModule*>;

constexpr const char* kConfigJson = "config.json";

/// "... must be of one format, and are int4 g128 and int4 g64".
std::string mixed(const std::string& what, const PlannedModule& a, const PlannedModule& b) {
  return fmt::format("{} must be of one format, and are {} and {}", what, describe(a), describe(b));
}

/// Applies the rules of one engine to one export.
class EngineCheck {
 public:
  EngineCheck(const Engine& engine, const Plan& plan, const ModelCase& model, Findings& findings)
      : engine_(engine), plan_(plan), model_(model), findings_(findings) {}

  void run() {
    check_family();
    for (const Rule& rule : engine_.rules)
      if (!rule.conditions.of_module() && rule.conditions.hold(model_, {}))
        say(kConfigJson, rule.verdict, text(rule, {}));
    for (const OneFormat& rule : engine_.one_format) check_one_format(rule);
    for (const PlannedModule& m : plan_.modules)
      for (const auto& [verdict, sentence] : of_module(m)) say(m.module->name, verdict, sentence);
  }

 private:
  using Said = std::vector<std::pair<EngineVerdict, std::string>>;

  /// What is said of a module. It is the same for all modules of a kind, in a format, of a size.
  const Said& of_module(const PlannedModule& m) {
    const Module& module = *m.module;
    const auto entry =
        said_.try_emplace({m.format.get(), m.recipe.aq, module.key.role, module.key.expert >= 0,
                           module.out_features, module.in_features});
    Said& said = entry.first->second;
    if (!entry.second) return said;
    ModuleCase asked = module_case(m, *plan_.container);
    if (engine_.reads_gguf && m.format) asked.gguf_problem = gguf_problem(m);
    const auto add = [&](const Rule& rule) { said.emplace_back(rule.verdict, text(rule, asked)); };
    for (const Rule& rule : engine_.rules)
      if (rule.conditions.of_module() && rule.conditions.hold(model_, asked)) add(rule);
    if (m.format) add(engine_.format_rule(model_, asked));
    return said;
  }

  std::string text(const Rule& rule, const ModuleCase& module) const {
    return fill_in(rule.sentence, model_, module, rule.conditions.missing(model_));
  }

  void say(const std::string& where, EngineVerdict verdict, const std::string& sentence) {
    if (verdict == EngineVerdict::kNote) findings_.note(where, sentence);
    if (verdict == EngineVerdict::kRefused) findings_.refuse(where, sentence);
    if (verdict == EngineVerdict::kWrong) findings_.wrong(where, sentence);
  }

  /// Checks whether the engine recognises the model as what it is, and has its options. The
  /// families of other plugins are not known here.
  void check_family() {
    if (engine_.reads_gguf) return;  // gguf_model() knows the families and their options
    const EngineFamily* family = engine_.find_family(model_);
    if (family == nullptr) {
      findings_.note(kConfigJson,
                     fmt::format("it is not known here whether {} {} has models of family "
                                 "{}; what is said is true of the formats",
                                 engine_.name, engine_.version, model_.family));
      return;
    }
    if (!family->types.contains(model_.type)) refuse_type();
    for (const std::string& option : model_.options) {
      const auto said = [&](const auto& sentences) {
        return fill_in(sentences.at(option), model_, {}, {});
      };
      if (family->ignores.contains(option)) findings_.wrong(kConfigJson, said(engine_.ignored));
      if (family->refuses.contains(option)) findings_.refuse(kConfigJson, said(engine_.refused));
    }
  }

  void refuse_type() {
    std::set<std::string> types;
    for (const EngineFamily& entry : engine_.families)
      if (entry.family == model_.family) types.insert(entry.types.begin(), entry.types.end());
    const Json type = model_.config.value("model_type", Json());
    findings_.refuse(kConfigJson,
                     fmt::format("model_type is {}, and {} finds this family under \"{}\"",
                                 type.is_null() ? "missing" : type.dump(), engine_.name,
                                 fmt::join(types, "\" or \"")));
  }

  void check_one_format(const OneFormat& rule) {
    std::map<int32_t, Modules> groups;  // by layer
    for (const PlannedModule& m : plan_.modules) {
      const aq_tensor_key& key = m.module->key;
      if (std::any_of(rule.of.begin(), rule.of.end(), [&](const std::string& name) {
            return has_name(key.role, key.expert >= 0, name);
          }))
        groups[rule.of_model ? 0 : key.layer].push_back(&m);
    }
    for (const auto& [layer, modules] : groups) {
      const PlannedModule& first = *modules.front();
      if (!rule.storage.empty() && module_case(first, *plan_.container).storage != rule.storage)
        continue;
      const auto other = std::find_if(modules.begin(), modules.end(),
                                      [&](const auto* m) { return !same_scheme(*m, first); });
      if (other != modules.end())
        say((*other)->module->name, rule.verdict, mixed(rule.name, first, **other));
    }
  }

  const Engine& engine_;
  const Plan& plan_;
  const ModelCase& model_;
  Findings& findings_;
  std::map<std::tuple<const Format*, std::string, int32_t, bool, int64_t, int64_t>, Said> said_;
};

/// Checks what the host's own knowledge of llama.cpp says of the model as a whole.
void check_gguf_model(const Export& exported, bool has_files, Loadable& loads) {
  try {
    describe_gguf(
        exported.original, exported.model,
        [&](const Module& m) { return exported.plan.modules[m.index].format; }, has_files);
  } catch (const Error& e) {
    loads.refused.emplace_back(e.what());
  }
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
                               int32_t gpus, bool has_files) {
  const Export exported{plan, model, original};
  const ModelCase asked = model_case(exported);
  std::vector<Loadable> loads;
  for (const Engine& engine : engines()) {
    Loadable& l = loads.emplace_back(Loadable{.engine = engine.name,
                                              .version = engine.version,
                                              .id = engine.id,
                                              .gguf = engine.reads_gguf,
                                              .run = engine.run.contains(model.id())});
    Findings findings;
    EngineCheck(engine, plan, asked, findings).run();
    if (gpus > 1 && engine.splits) check_split(exported, gpus, findings);
    findings.move_to(l);
    if (l.gguf && l.refused.empty()) check_gguf_model(exported, has_files, l);
  }
  return loads;
}

namespace {

/// The plan with groups of `size` in all modules whose format has that size. Adds the ids of these
/// formats to `formats`. Throws an Error if a module cannot be stored so.
Plan with_groups_of(const Plan& plan, int32_t size, const Registry& registry,
                    std::set<std::string>& formats) {
  Plan changed = plan;
  std::map<std::string, std::shared_ptr<const Format>> made;
  for (PlannedModule& m : changed.modules) {
    if (!m.format) continue;
    const auto sizes = m.format->desc().allowed_group_sizes();
    if (std::find(sizes.begin(), sizes.end(), size) == sizes.end()) continue;
    if (m.module->in_features % size != 0)
      fail("{}: groups of {} do not divide its rows", m.module->name, size);
    formats.insert(m.recipe.wq);
    Json options = m.recipe.options;
    options.update(plan.container->options_for(*m.format));
    options["group_size"] = size;
    auto& format = made[m.recipe.wq + options.dump()];
    if (!format) format = registry.create_format(m.recipe.wq, options);
    m.format = format;
    (void)plan.container->tensors_of(m.stored());
  }
  return changed;
}

}  // namespace

void suggest_group_sizes(std::vector<Loadable>& loads, const Plan& plan, const Model& model,
                         const Source& original, const Registry& registry, int32_t gpus,
                         bool has_files) {
  const auto lacks = [](const Loadable& l) { return !l.loads() && l.remedy.empty(); };
  for (const int32_t size : {128, 64, 32, 16}) {
    if (std::none_of(loads.begin(), loads.end(), lacks)) return;
    try {
      std::set<std::string> formats;
      const Plan changed = with_groups_of(plan, size, registry, formats);
      if (formats.empty()) continue;
      const auto others = loadable(changed, model, original, gpus, has_files);
      for (std::size_t i = 0; i < loads.size(); i++)
        if (lacks(loads[i]) && others[i].loads())
          loads[i].remedy =
              fmt::format("group_size: {} for all modules in {} would make it loadable", size,
                          fmt::join(formats, " and "));
    } catch (const Error&) {  // not this size
    }
  }
}

void check_target(const std::vector<Loadable>& loads, const std::string& target) {
  std::vector<std::string> known{"any"};
  for (const Loadable& l : loads) {
    known.push_back(l.id);
    if (l.id == target && !l.loads())
      fail("{}: {}{}", l.verdict(), l.problems().front(), l.remedy.empty() ? "" : "; " + l.remedy);
  }
  if (std::find(known.begin(), known.end(), target) == known.end())
    throw UsageError(fmt::format("--target \"{}\"{}", target, did_you_mean(target, known)));
}

}  // namespace aqhost
