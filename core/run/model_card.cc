#include "run/model_card.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string_view>
#include <vector>

#include "base/counted.h"
#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "checkpoint/model_folder.h"
#include "export/gguf.h"
#include "plan/loadable.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// A YAML scalar: plain if it is one word that no reader takes for anything but a string.
std::string scalar(const std::string& text) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '/' || c == '.' ||
           c == '_' || (c >= '0' && c <= '9');
  };
  const bool letter =
      !text.empty() && ((text[0] >= 'a' && text[0] <= 'z') || (text[0] >= 'A' && text[0] <= 'Z'));
  static const std::set<std::string> kWords{"true", "false", "null", "yes", "no", "on", "off",
                                            "True", "False", "Null", "Yes", "No", "On", "Off"};
  if (letter && !kWords.contains(text) && std::all_of(text.begin(), text.end(), plain)) return text;
  return to_text(Json(text));
}

/// The lines of the front matter of the original's README.md, if there are any.
std::vector<std::string> front_matter(const Source& original) {
  const fs::path file = fs::path(original.directory()) / "README.md";
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) return {};
  const std::string text = read_file(file);
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    line.erase(line.find_last_not_of(" \t\r") + 1);
    at = end + 1;
    if (lines.empty() && line != "---") return {};
    if (!lines.empty() && line == "---") return lines;
    lines.push_back(std::move(line));
  }
  return {};  // it does not end
}

/// "license: apache-2.0" and the like, as the original's card says it.
std::string license_lines(const Source& original) {
  std::string text;
  for (const std::string& line : front_matter(original))
    for (const std::string_view key : {"license", "license_name", "license_link"}) {
      if (!line.starts_with(std::string(key) + ": ")) continue;
      std::string value = line.substr(key.size() + 2);
      value.erase(0, value.find_first_not_of(' '));
      const bool quoted = value.size() >= 2 && value.front() == value.back() &&
                          (value.front() == '"' || value.front() == '\'');
      if (quoted) value = value.substr(1, value.size() - 2);
      if (!quoted) value.erase(std::min(value.find(" #"), value.size()));  // a comment
      value.erase(value.find_last_not_of(' ') + 1);
      if (!value.empty() && value.find_first_of("[]{}|>&*!") == value.npos)
        text += fmt::format("{}: {}\n", key, scalar(value));
    }
  return text;
}

std::set<std::string> formats_of(const RunReport& report) {
  std::set<std::string> formats;
  for (const auto& [name, m] : report.units.modules) formats.insert(m.format);
  return formats;
}

std::string header(const Source& original, const Plan& plan, const RunReport& report) {
  std::string text = "---\n";
  text += fmt::format("base_model: {}\nbase_model_relation: quantized\n",
                      scalar(base_model_name(original)));
  text += license_lines(original) + "library_name: transformers\npipeline_tag: text-generation\n";
  std::set<std::string> tags = formats_of(report);
  for (const char* tag : {"aqhost", "moe", "quantized"}) tags.insert(tag);
  tags.insert(plan.container == &gguf() ? "compressed-tensors" : plan.container->name());
  if (plan.needs_calibration()) tags.insert("gptq");
  text += "tags:\n";
  for (const std::string& tag : tags) text += "- " + scalar(tag) + "\n";
  return text + "---\n\n";
}

/// The table of the formats.
std::string formats_table(const RunReport& report) {
  struct Row {
    int64_t modules = 0;
    double weights = 0, bits = 0;
  };
  std::map<std::array<std::string, 3>, Row> rows;
  for (const auto& [name, m] : report.units.modules) {
    const std::string group = m.group_size > 0    ? std::to_string(m.group_size)
                              : m.group_size == 0 ? "the matrix"
                                                  : "a row";
    Row& row = rows[{m.format, group, m.algorithm}];
    const auto weights = static_cast<double>(m.out_features * m.in_features);
    row.modules++;
    row.weights += weights;
    row.bits += weights * m.bits_per_weight;
  }
  std::string text =
      "| format | weights that share a scale | solved by | modules | bits per weight |\n"
      "|---|---|---|---|---|\n";
  for (const auto& [key, row] : rows)
    text += fmt::format("| {} | {} | {} | {} | {:.3f} |\n", key[0], key[1], key[2], row.modules,
                        row.bits / row.weights);
  return text;
}

std::string what_was_done(const Source& original, const Model& model, const Plan& plan,
                          const RunReport& report, const CardOptions& options) {
  const std::string base = base_model_name(original);
  std::string text = fmt::format(
      "# {}, quantized\n\nThis is {}, a Mixture-of-Experts model of the family {}, with the "
      "weights "
      "of {} quantized by aqhost {}. They take {:.3f} bits each, scales included; all tensors "
      "together take {} in place of {}. Modules that are not named in the table are not "
      "quantized.\n\n",
      base, base, model.id(),
      counted(static_cast<int64_t>(report.units.modules.size()), "linear map"), AQHOST_VERSION,
      report.bits_per_weight, format_bytes(report.bytes),
      format_bytes(original.stored_size().bytes));
  text += formats_table(report);
  if (plan.container == &gguf())
    text += fmt::format("\nThe same weights are in {}, for llama.cpp.\n", kGgufFile);
  if (!options.recipe.empty())
    text += fmt::format("\nThe recipe:\n\n```yaml\n{}{}```\n", options.recipe,
                        options.recipe.ends_with('\n') ? "" : "\n");
  return text;
}

/// What the run has measured: nothing that another command would have to measure.
std::string measured(const RunReport& report) {
  std::string text;
  if (const auto& c = report.calibration) {
    std::vector<std::string> files;
    for (const auto& f : c->files) files.push_back(f.file);
    text += fmt::format(
        "The run was calibrated on {} of {} tokens: {} of text ({}) and {} of random tokens.\n",
        counted(c->windows, "window"), c->seqlen, c->windows - c->random_windows,
        fmt::join(files, ", "), c->random_windows);
  }
  if (const double loss = report.units.loss(), rounded = report.units.rtn_loss(); rounded > 0)
    text += fmt::format(
        "The losses of the modules (the squared errors of their outputs on these tokens) add up to "
        "{:.1f} % of those of rounding to nearest.\n",
        100 * loss / rounded);
  std::vector<int64_t> tokens;
  for (const ExpertReport& e : report.units.experts) tokens.push_back(e.tokens);
  if (!tokens.empty()) {
    std::sort(tokens.begin(), tokens.end());
    text += fmt::format(
        "An expert was calibrated on {} to {} tokens, {} in the median; {} of {} had so few that "
        "the statistics of all tokens of their layer were added.\n",
        tokens.front(), tokens.back(), tokens[tokens.size() / 2], report.units.starved_experts(),
        counted(static_cast<int64_t>(tokens.size()), "expert"));
  }
  const bool calibrated = !text.empty();
  if (!calibrated)
    text =
        "Every weight was rounded to nearest, which needs no calibration and measures nothing.\n";
  text += "\nThe perplexity was not measured; `aqhost eval --model MODEL --text FILE` does that.";
  if (calibrated)
    text +=
        " `quantization_report.json` has the loss of each module and the tokens of each expert.";
  return "\n## Measured by the run\n\n" + text + "\n";
}

/// The commands that serve the export in an engine that loads it.
std::string serving_commands(const Loadable& engine, const Plan& plan) {
  if (engine.id == "vllm") return "vllm serve MODEL";
  if (engine.id == "sglang") return "python3 -m sglang.launch_server --model-path MODEL";
  if (engine.id == "transformers")
    return "python3 -c 'from transformers import pipeline; print(pipeline(\"text-generation\", "
           "\"MODEL\")(\"Hello\"))'";
  if (!engine.gguf) return {};
  const std::string serve = fmt::format("llama-server -m {}", kGgufFile);
  return plan.container == &gguf()
             ? serve
             : fmt::format("aqhost convert MODEL --to gguf --out {}\n{}", kGgufFile, serve);
}

std::string serving(const Source& original, const Model& model, const Plan& plan) {
  std::string text =
      "\n## Serving\n\nMODEL is the folder of these files, or their id on the Hugging Face Hub. "
      "What "
      "is said of an engine follows from the sources of the version that is named.\n";
  for (const Loadable& engine : loadable(plan, model, original)) {
    text += fmt::format("\n**{}** ", engine.name());
    if (engine.loads()) {
      text += fmt::format("loads it{}:\n\n```\n{}\n```\n", engine.gguf ? ", as a GGUF file" : "",
                          serving_commands(engine, plan));
      for (const std::string& note : engine.notes) text += "\n- " + note + "\n";
      continue;
    }
    text +=
        engine.refused.empty() ? "loads it, but computes something else:\n" : "does not load it:\n";
    for (const std::string& problem : engine.problems()) text += "\n- " + problem + "\n";
  }
  return text;
}

}  // namespace

std::string base_model_name(const Source& original) {
  if (std::string id = hub_id(original.directory()); !id.empty()) return id;
  const Json name = original.config().value("_name_or_path", Json());
  if (name.is_string() && is_hub_id(name.get<std::string>())) return name.get<std::string>();
  std::error_code ignored;
  const fs::path folder = fs::canonical(original.directory(), ignored);
  return folder.filename().empty() ? "the original" : as_utf8(folder.filename().string());
}

std::string model_card(const Source& original, const Model& model, const Plan& plan,
                       const RunReport& report, const CardOptions& options) {
  std::string text = header(original, plan, report) +
                     what_was_done(original, model, plan, report, options) + measured(report) +
                     serving(original, model, plan);
  if (!options.command.empty())
    text += fmt::format("\n## Repeating the run\n\n```\n{}\n```\n", options.command);
  return as_utf8(text);
}

}  // namespace aqhost
