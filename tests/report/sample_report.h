#pragma once

#include <string>

#include "report/report.h"

namespace aqhost {

/// How often `part` is in `text`.
inline std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) n++;
  return n;
}
inline bool contains(const std::string& text, const std::string& part) {
  return count(text, part) > 0;
}

/// A report on a run over `layers` layers of `experts` experts, in which every layer has attention
/// in int8 and experts in int4, and the first expert of each layer is starved.
inline RunReport sample_report(int layers, int experts) {
  RunReport report;
  report.model_type = "olmoe";
  report.device = "cpu";
  report.setup = {{"--model", "my model", "--save", "out"},
                  "models/tiny",
                  "r.yaml",
                  "default: {}",
                  4000000,
                  Json{{"version", "1.0"}, {"settings", {{"percdamp", 0.1}}}}};
  report.engines = {
      {"vLLM", "0.33", false, true, true, true, {}, {"a note"}, ""},
      {"SGLang", "0.5", false, false, false, false, {"no int8"}, {}, "group_size: 32 would do"}};
  const auto add = [&](const std::string& name, int layer, int expert, const char* format) {
    ModuleReport m;
    m.layer = layer;
    m.expert = expert;
    m.format = format;
    m.activations = "bf16";
    m.algorithm = "gptq";
    m.group_size = 128;
    m.out_features = 64;
    m.in_features = 128;
    m.bits_per_weight = std::string(format) == "int8" ? 8.125 : 4.125;
    m.solve = ModuleReport::Solve{1.0 + layer, 4, 100 + expert, 50, expert == 0};
    report.weights += m.out_features * m.in_features;
    report.units.modules["model.layers." + std::to_string(layer) + "." + name] = m;
  };
  for (int l = 0; l < layers; l++) {
    add("self_attn.q_proj", l, -1, "int8");
    for (int e = 0; e < experts; e++) {
      add("mlp.experts." + std::to_string(e) + ".up_proj", l, e, "int4");
      report.units.experts.push_back({l, e, e == 0 ? 3 : 100 + e, 50, e == 0, 64});
    }
    report.units.layers.push_back({l, {{"calibrate", 1.5}, {"solve", 2}}});
  }
  report.seconds = {{"calibrate", 1.5 * layers}, {"solve", 2.0 * layers}};
  report.memory = {{"calibrate", 1000000}, {"solve", 2000000}};
  report.bits_per_weight = 4.5;
  report.bytes = 1000000;
  report.peak_memory_bytes = 2000000;
  CalibrationReport& calibration = report.calibration.emplace();
  calibration.files.push_back({"prose.txt", 3, 4, 10, 1, 5000, 7, 0, {}});
  calibration.windows = 8;
  calibration.random_windows = 4;
  calibration.seqlen = 64;
  calibration.seed = 5;
  return report;
}

}  // namespace aqhost
