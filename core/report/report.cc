#include "report/report.h"

#include <limits>

#include "base/error.h"

namespace aqhost {
namespace {

constexpr const char* kTotal = "total";  // the key of the seconds of all phases together

Json to_json(const ModuleReport& m) {
  Json json{{"layer", m.layer},
            {"format", m.format},
            {"group_size", m.group_size},
            {"bits_per_weight", m.bits_per_weight},
            {"activations", m.activations},
            {"algorithm", m.algorithm},
            {"out_features", m.out_features},
            {"in_features", m.in_features}};
  if (m.expert >= 0) json["expert"] = m.expert;
  if (!m.note.empty()) json["note"] = m.note;
  if (!m.solve) return json;
  json["loss"] = m.solve->loss;
  json["rtn_loss"] = m.solve->rtn_loss;
  json["tokens"] = m.solve->tokens;
  json["weight"] = m.solve->weight;
  if (m.solve->starved) json["starved"] = true;
  return json;
}

constexpr int64_t kMaximumIndex = 65'535;  // of a layer or an expert; the page has room for each

/// The index of a layer or of an expert, at least `least`.
int32_t index_of(const Field& json, int64_t least = 0) {
  return static_cast<int32_t>(json.integer(least, kMaximumIndex));
}

/// A number that to_json() has written; 0 for one that was not finite, which is null in JSON.
double number_of(const Field& json) { return json.is_null() ? 0 : json.number(); }

ModuleReport parse_module(const Field& json) {
  ModuleReport m;
  m.layer = index_of(json["layer"], -1);
  if (!json["expert"].is_null()) m.expert = index_of(json["expert"]);
  m.format = json["format"].text();
  m.activations = json["activations"].text();
  m.algorithm = json["algorithm"].text();
  m.note = json["note"].text_or("");
  m.group_size = json["group_size"].integer();
  m.out_features = json["out_features"].integer();
  m.in_features = json["in_features"].integer();
  m.bits_per_weight = json["bits_per_weight"].number();
  if (json["loss"].is_null()) return m;
  m.solve = ModuleReport::Solve{json["loss"].number(), number_of(json["rtn_loss"]),
                                json["tokens"].integer(), json["weight"].number(),
                                json["starved"].flag_or(false)};
  return m;
}

Json to_json(const ExpertReport& e) {
  return {{"layer", e.layer},   {"expert", e.expert},   {"tokens", e.tokens},
          {"weight", e.weight}, {"starved", e.starved}, {"needed", e.needed}};
}

ExpertReport parse_expert(const Field& json) {
  return {index_of(json["layer"]), index_of(json["expert"]), json["tokens"].integer(),
          json["weight"].number(), json["starved"].flag(),   json["needed"].integer()};
}

Json to_json(const CalibrationReport& calibration) {
  Json files = Json::array();
  for (const CalibrationReport::File& f : calibration.files)
    files.push_back({{"file", f.file},
                     {"weight", f.weight},
                     {"windows", f.windows},
                     {"available", f.available},
                     {"documents", f.documents},
                     {"tokens", f.tokens},
                     {"unused_tokens", f.unused_tokens},
                     {"joined_windows", f.joined_windows},
                     {"separator", f.separator ? Json(*f.separator) : Json()}});
  Json json{{"files", files},
            {"seqlen", calibration.seqlen},
            {"seed", calibration.seed},
            {"windows", calibration.windows},
            {"random_windows", calibration.random_windows}};
  if (const auto& b = calibration.balance)
    json["balance"] = {
        {"pool", b->pool}, {"spread_before", b->spread_before}, {"spread_after", b->spread_after}};
  return json;
}

CalibrationReport parse_calibration(const Field& json) {
  CalibrationReport calibration;
  for (const Field& f : json["files"].items()) {
    CalibrationReport::File& file = calibration.files.emplace_back();
    file.file = f["file"].text();
    file.weight = f["weight"].number();
    file.windows = f["windows"].integer();
    file.available = f["available"].integer();
    file.documents = f["documents"].integer();
    file.tokens = f["tokens"].integer();
    file.unused_tokens = f["unused_tokens"].integer();
    file.joined_windows = f["joined_windows"].integer();
    if (!f["separator"].is_null()) file.separator = f["separator"].integer();
  }
  if (const Field b = json["balance"]; !b.is_null())
    calibration.balance = CalibrationReport::Balance{
        b["pool"].integer(), b["spread_before"].number(), b["spread_after"].number()};
  calibration.windows = json["windows"].integer();
  calibration.random_windows = json["random_windows"].integer();
  calibration.seqlen = json["seqlen"].integer();
  calibration.seed = static_cast<uint64_t>(json["seed"].integer());
  return calibration;
}

std::vector<std::string> parse_texts(const Field& json) {
  std::vector<std::string> texts;
  for (const Field& text : json.items()) texts.push_back(text.text());
  return texts;
}

Json to_json(const RunSetup& setup) {
  return {{"command", setup.command},
          {"model", setup.model},
          {"recipe_file", setup.recipe_file},
          {"recipe", setup.recipe},
          {"original_bytes", setup.original_bytes},
          {"identity", setup.identity}};
}

RunSetup parse_setup(const Field& json) {
  return {parse_texts(json["command"]),     json["model"].text(),
          json["recipe_file"].text(),       json["recipe"].text(),
          json["original_bytes"].integer(), json["identity"].json()};
}

Json to_json(const EngineReport& e) {
  Json json{{"name", e.name},          {"version", e.version}, {"gguf", e.gguf},
            {"rules_were_run", e.run}, {"loads", e.loads},     {"right", e.right},
            {"problems", e.problems},  {"notes", e.notes}};
  if (!e.remedy.empty()) json["remedy"] = e.remedy;
  return json;
}

EngineReport parse_engine(const Field& json) {
  EngineReport e;
  e.name = json["name"].text();
  e.version = json["version"].text();
  e.gguf = json["gguf"].flag();
  e.run = json["rules_were_run"].flag();
  e.loads = json["loads"].flag();
  e.right = json["right"].flag();
  e.problems = parse_texts(json["problems"]);
  e.notes = parse_texts(json["notes"]);
  e.remedy = json["remedy"].text_or("");
  return e;
}

/// The seconds of the phases in the object `json`, but for those of all together.
PhaseSeconds parse_phases(const Field& json) {
  PhaseSeconds seconds;
  for (const auto& [phase, value] : json.members())
    if (phase != kTotal) seconds.emplace_back(phase, value.number());
  return seconds;
}

PhaseBytes parse_bytes(const Field& json) {
  PhaseBytes memory;
  for (const auto& [phase, bytes] : json.members()) memory[phase] = bytes.integer();
  return memory;
}

}  // namespace

void UnitReport::append(UnitReport other) {
  modules.merge(other.modules);
  experts.insert(experts.end(), other.experts.begin(), other.experts.end());
  refined.insert(refined.end(), other.refined.begin(), other.refined.end());
  layers.insert(layers.end(), other.layers.begin(), other.layers.end());
}

double UnitReport::loss() const {
  double sum = 0;
  for (const auto& [name, m] : modules) sum += m.solve ? m.solve->loss : 0;
  return sum;
}

double UnitReport::rtn_loss() const {
  double sum = 0;
  for (const auto& [name, m] : modules) sum += m.solve ? m.solve->rtn_loss : 0;
  return sum;
}

int64_t UnitReport::starved_experts() const {
  int64_t count = 0;
  for (const ExpertReport& e : experts) count += e.starved ? 1 : 0;
  return count;
}

Json to_json(const UnitReport& report) {
  Json json{{"modules", Json::object()}, {"experts", Json::array()}};
  for (const auto& [name, m] : report.modules) json["modules"][name] = to_json(m);
  for (const ExpertReport& e : report.experts) json["experts"].push_back(to_json(e));
  for (const Refinement& r : report.refined)
    json["refined"].push_back(
        {{"layer", r.layer}, {"error_before", r.error_before}, {"error_after", r.error_after}});
  for (const LayerSeconds& l : report.layers) {
    Json seconds = Json::object();
    for (const auto& [phase, value] : l.seconds) seconds[phase] = value;
    json["layers"].push_back({{"layer", l.layer}, {"seconds", seconds}});
  }
  return json;
}

UnitReport parse_unit_report(const Field& json) {
  UnitReport report;
  for (const auto& [name, m] : json["modules"].members()) report.modules[name] = parse_module(m);
  for (const Field& e : json["experts"].items()) report.experts.push_back(parse_expert(e));
  if (!json["refined"].is_null())
    for (const Field& r : json["refined"].items())
      report.refined.push_back(
          {index_of(r["layer"]), number_of(r["error_before"]), number_of(r["error_after"])});
  if (json["layers"].is_null()) return report;
  for (const Field& l : json["layers"].items())
    report.layers.push_back({index_of(l["layer"]), parse_phases(l["seconds"])});
  return report;
}

double total(const PhaseSeconds& seconds) {
  double sum = 0;
  for (const auto& [phase, value] : seconds) sum += value;
  return sum;
}

Json to_json(const PhaseSeconds& seconds) {
  Json json = Json::array();
  for (const auto& [phase, value] : seconds) json.push_back({phase, value});
  return json;
}

PhaseSeconds difference(const PhaseSeconds& later, const PhaseSeconds& earlier) {
  PhaseSeconds seconds;
  for (std::size_t i = 0; i < later.size(); i++) {
    const double passed = later[i].second - (i < earlier.size() ? earlier[i].second : 0);
    if (passed > 0) seconds.emplace_back(later[i].first, passed);
  }
  return seconds;
}

PhaseSeconds parse_seconds(const Field& json) {
  PhaseSeconds seconds;
  for (const Field& phase : json.items()) {
    const auto pair = phase.items();
    if (pair.size() != 2) phase.mismatch("a phase and its seconds");
    seconds.emplace_back(pair[0].text(), pair[1].number());
  }
  return seconds;
}

Json to_json(const RankReport& report) {
  Json json{{"peak_memory_bytes", report.peak_memory_bytes}, {"traffic", Json::object()}};
  if (report.peak_device_bytes) json["peak_device_bytes"] = *report.peak_device_bytes;
  for (const RankReport::Traffic& t : report.traffic)
    json["traffic"][t.station] = {{"bytes", t.bytes}, {"seconds", t.seconds}};
  return json;
}

RankReport parse_rank_report(const Field& json) {
  RankReport report;
  report.peak_memory_bytes = json["peak_memory_bytes"].integer();
  if (!json["peak_device_bytes"].is_null())
    report.peak_device_bytes = json["peak_device_bytes"].integer();
  for (const auto& [station, t] : json["traffic"].members())
    report.traffic.push_back({station, t["bytes"].integer(), t["seconds"].number()});
  return report;
}

Json to_json(const RunReport& report) {
  Json json = to_json(report.units);
  json["generator"] = "aqhost";
  json["model_type"] = report.model_type;
  json["device"] = report.device;
  json["run"] = to_json(report.setup);
  json["engines"] = Json::array();
  for (const EngineReport& engine : report.engines) json["engines"].push_back(to_json(engine));
  if (report.calibration) json["calibration"] = to_json(*report.calibration);
  Json seconds{{kTotal, report.total_seconds()}};
  for (const auto& [phase, value] : report.seconds) seconds[phase] = value;
  json["totals"] = {{"modules", report.units.modules.size()},
                    {"weights", report.weights},
                    {"bits_per_weight", report.bits_per_weight},
                    {"loss", report.units.loss()},
                    {"rtn_loss", report.units.rtn_loss()},
                    {"starved_experts", report.units.starved_experts()},
                    {"seconds", seconds},
                    {"memory", report.memory},
                    {"bytes", report.bytes},
                    {"resumed_layers", report.resumed_layers},
                    {"peak_memory_bytes", report.peak_memory_bytes}};
  if (report.peak_device_bytes) json["totals"]["peak_device_bytes"] = *report.peak_device_bytes;
  if (!report.device_memory.empty()) json["totals"]["device_memory"] = report.device_memory;
  for (const RankReport& rank : report.ranks) json["totals"]["ranks"].push_back(to_json(rank));
  return json;
}

RunReport parse_run_report(const Field& json) {
  if (json["run"].is_null())
    fail("{}: has no \"run\"; an earlier version of aqhost wrote it, which recorded less",
         json.where());
  RunReport report;
  report.units = parse_unit_report(json);
  report.model_type = json["model_type"].text();
  report.device = json["device"].text();
  report.setup = parse_setup(json["run"]);
  for (const Field& engine : json["engines"].items())
    report.engines.push_back(parse_engine(engine));
  if (const Field c = json["calibration"]; !c.is_null()) report.calibration = parse_calibration(c);
  const Field totals = json["totals"];
  report.weights = totals["weights"].integer();
  report.bits_per_weight = totals["bits_per_weight"].number();
  report.seconds = parse_phases(totals["seconds"]);
  report.memory = parse_bytes(totals["memory"]);
  if (const Field memory = totals["device_memory"]; !memory.is_null())
    report.device_memory = parse_bytes(memory);
  report.bytes = totals["bytes"].integer();
  report.resumed_layers = totals["resumed_layers"].integer();
  report.peak_memory_bytes = totals["peak_memory_bytes"].integer();
  if (const Field bytes = totals["peak_device_bytes"]; !bytes.is_null())
    report.peak_device_bytes = bytes.integer();
  if (const Field ranks = totals["ranks"]; !ranks.is_null())
    for (const Field& rank : ranks.items()) report.ranks.push_back(parse_rank_report(rank));
  return report;
}

}  // namespace aqhost
