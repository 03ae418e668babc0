#include "plan/engine.h"

#include <algorithm>

#include "base/error.h"
#include "base/nearest.h"
#include "config/yaml.h"

namespace aqhost {
namespace {

using Names = std::vector<std::string>;

void refuse_unknown_keys(const Field& map, const Names& known) {
  for (const auto& [key, value] : map.members())
    if (std::find(known.begin(), known.end(), key) == known.end())
      fail("{}: unknown key \"{}\"{}", map.where(), key, did_you_mean(key, known));
}

std::set<std::string> read_names(const Field& list, const Names& known = {}) {
  std::set<std::string> names;
  if (list.is_null()) return names;
  for (const Field& name : list.items()) {
    if (!known.empty() && std::find(known.begin(), known.end(), name.text()) == known.end())
      fail("{}: \"{}\"{}", name.where(), name.text(), did_you_mean(name.text(), known));
    names.insert(name.text());
  }
  return names;
}

std::string read_sentence(const Field& field) {
  if (const std::string name = unknown_placeholder(field.text()); !name.empty())
    fail("{}: nothing is known by the name {{{}}}", field.where(), name);
  return field.text();
}

struct VerdictKey {
  const char* key;
  EngineVerdict verdict;
};
constexpr VerdictKey kVerdicts[] = {{"loads", EngineVerdict::kLoads},
                                    {"note", EngineVerdict::kNote},
                                    {"refused", EngineVerdict::kRefused},
                                    {"wrong", EngineVerdict::kWrong}};

Rule read_rule(const Field& row) {
  Names known = Conditions::keys();
  known.insert(known.end(), {"loads", "note", "refused", "wrong", "source", "example"});
  refuse_unknown_keys(row, known);
  Rule rule{.conditions = Conditions(row), .source = row["source"].text()};
  int verdicts = 0;
  for (const auto& [key, verdict] : kVerdicts) {
    const Field said = row[key];
    if (said.is_null()) continue;
    verdicts++;
    rule.verdict = verdict;
    if (verdict != EngineVerdict::kLoads)
      rule.sentence = read_sentence(said);
    else if (!said.flag())
      said.mismatch("true");
  }
  if (verdicts != 1) row.mismatch("one of loads, note, refused and wrong");
  const Field example = row["example"];
  (void)read_example(example);
  rule.example = example.json();
  return rule;
}

EngineFamily read_family(const Field& row, const Engine& engine) {
  refuse_unknown_keys(row, {"family", "model_types", "ignores", "refuses", "source"});
  EngineFamily family{.family = row["family"].text(),
                      .types = read_names(row["model_types"]),
                      .ignores = read_names(row["ignores"], model_option_names()),
                      .refuses = read_names(row["refuses"], model_option_names())};
  (void)row["source"].text();  // for readers of the file
  for (const auto& [options, sentences, key] :
       {std::tuple(&family.ignores, &engine.ignored, "ignored"),
        std::tuple(&family.refuses, &engine.refused, "refused")})
    for (const std::string& option : *options)
      if (!sentences->contains(option))
        fail("{}: options.{}.{} is missing, and {} needs it", row.where(), option, key,
             family.family);
  return family;
}

/// The sentences about options that engines ignore, or refuse.
void read_options(const Field& options, Engine& engine) {
  refuse_unknown_keys(options, model_option_names());
  for (const auto& [option, row] : options.members()) {
    refuse_unknown_keys(row, {"ignored", "refused"});
    if (const Field said = row["ignored"]; !said.is_null())
      engine.ignored[option] = read_sentence(said);
    if (const Field said = row["refused"]; !said.is_null())
      engine.refused[option] = read_sentence(said);
  }
}

OneFormat read_one_format(const Field& row) {
  refuse_unknown_keys(row, {"of", "name", "within", "storage", "verdict", "source"});
  OneFormat result{.name = row["name"].text(),
                   .of_model = row["within"].text_or("layer") == "model",
                   .storage = row["storage"].text_or("")};
  (void)row["source"].text();
  for (const std::string& name : read_names(row["of"], module_names())) result.of.push_back(name);
  const std::string verdict = row["verdict"].text_or("refused");
  if (verdict != "refused" && verdict != "wrong") row["verdict"].mismatch("refused or wrong");
  if (verdict == "wrong") result.verdict = EngineVerdict::kWrong;
  return result;
}

}  // namespace

Engine read_engine(const std::string& text, const std::string& file) {
  const Json json = parse_yaml(text, file);
  const Field root(json, file);
  refuse_unknown_keys(root, {"id", "engine", "version", "source", "run", "reads", "splits",
                             "options", "families", "formats", "rules", "one_format"});
  Engine engine{.id = root["id"].text(),
                .name = root["engine"].text(),
                .version = root["version"].text(),
                .run = read_names(root["run"]),
                .splits = root["splits"].flag_or(false)};
  if (const Field reads = root["reads"]; !reads.is_null()) {
    if (reads.text() != "gguf") reads.mismatch("\"gguf\"");
    engine.reads_gguf = true;
  }
  (void)root["source"].text();
  const auto items = [&](const char* key) {
    return root[key].is_null() ? std::vector<Field>{} : root[key].items();
  };
  if (const Field options = root["options"]; !options.is_null()) read_options(options, engine);
  for (const Field& row : items("families")) engine.families.push_back(read_family(row, engine));
  for (const Field& row : items("formats")) engine.formats.push_back(read_rule(row));
  for (const Field& row : items("rules")) engine.rules.push_back(read_rule(row));
  for (const Field& row : items("one_format")) engine.one_format.push_back(read_one_format(row));
  if (engine.formats.empty() || !engine.formats.back().conditions.empty())
    root["formats"].mismatch("a list whose last row has no condition");
  return engine;
}

const Rule& Engine::format_rule(const ModelCase& model, const ModuleCase& module) const {
  return *std::find_if(formats.begin(), formats.end(),
                       [&](const Rule& rule) { return rule.conditions.hold(model, module); });
}

const EngineFamily* Engine::find_family(const ModelCase& model) const {
  const EngineFamily* found = nullptr;
  for (const EngineFamily& entry : families) {
    if (entry.family != model.family) continue;
    if (entry.types.contains(model.type)) return &entry;
    if (found == nullptr) found = &entry;
  }
  return found;
}

const std::vector<Engine>& engines() {
  static const std::vector<Engine> all = [] {
    std::vector<Engine> read;
    for (std::size_t i = 0; i < kEngineFileCount; i++)
      read.push_back(read_engine(kEngineFiles[i].text, kEngineFiles[i].name));
    return read;
  }();
  return all;
}

}  // namespace aqhost
