#include "run/report.h"

#include <limits>

namespace aqhost {
namespace {

Json to_json(const ModuleReport& m) {
  Json json{{"format", m.format},
            {"group_size", m.group_size},
            {"bits_per_weight", m.bits_per_weight},
            {"activations", m.activations},
            {"algorithm", m.algorithm},
            {"out_features", m.out_features},
            {"in_features", m.in_features}};
  if (!m.note.empty()) json["note"] = m.note;
  if (!m.solve) return json;
  json["loss"] = m.solve->loss;
  json["rtn_loss"] = m.solve->rtn_loss;
  json["tokens"] = m.solve->tokens;
  json["weight"] = m.solve->weight;
  if (m.solve->starved) json["starved"] = true;
  return json;
}

ModuleReport parse_module(const Field& json) {
  ModuleReport m;
  m.format = json["format"].text();
  m.activations = json["activations"].text();
  m.algorithm = json["algorithm"].text();
  m.note = json["note"].text_or("");
  m.group_size = json["group_size"].integer();
  m.out_features = json["out_features"].integer();
  m.in_features = json["in_features"].integer();
  m.bits_per_weight = json["bits_per_weight"].number();
  if (json["loss"].is_null()) return m;
  m.solve = ModuleReport::Solve{json["loss"].number(), json["rtn_loss"].number(),
                                json["tokens"].integer(), json["weight"].number(),
                                json["starved"].flag_or(false)};
  return m;
}

Json to_json(const ExpertReport& e) {
  return {{"layer", e.layer},   {"expert", e.expert},   {"tokens", e.tokens},
          {"weight", e.weight}, {"starved", e.starved}, {"needed", e.needed}};
}

int32_t int32_of(const Field& json) {
  return static_cast<int32_t>(json.integer(0, std::numeric_limits<int32_t>::max()));
}

ExpertReport parse_expert(const Field& json) {
  return {int32_of(json["layer"]), int32_of(json["expert"]), json["tokens"].integer(),
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
          {int32_of(r["layer"]), r["error_before"].number(), r["error_after"].number()});
  if (json["layers"].is_null()) return report;
  for (const Field& l : json["layers"].items()) {
    LayerSeconds layer{int32_of(l["layer"]), {}};
    for (const auto& [phase, value] : l["seconds"].members())
      layer.seconds.emplace_back(phase, value.number());
    report.layers.push_back(std::move(layer));
  }
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
  if (report.calibration) json["calibration"] = to_json(*report.calibration);
  Json seconds{{"total", report.total_seconds()}};
  for (const auto& [phase, value] : report.seconds) seconds[phase] = value;
  json["totals"] = {{"modules", report.units.modules.size()},
                    {"weights", report.weights},
                    {"bits_per_weight", report.bits_per_weight},
                    {"loss", report.units.loss()},
                    {"rtn_loss", report.units.rtn_loss()},
                    {"starved_experts", report.units.starved_experts()},
                    {"seconds", seconds},
                    {"bytes", report.bytes},
                    {"resumed_layers", report.resumed_layers},
                    {"peak_memory_bytes", report.peak_memory_bytes}};
  if (report.peak_device_bytes) json["totals"]["peak_device_bytes"] = *report.peak_device_bytes;
  for (const RankReport& rank : report.ranks) json["totals"]["ranks"].push_back(to_json(rank));
  return json;
}

}  // namespace aqhost
