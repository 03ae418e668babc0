#include "command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <span>

#include "base/error.h"

namespace aqhost {

void add_plugin_options(po::options_description_easy_init& add) {
  add("plugin-dir", po::value<std::vector<std::string>>()->composing(),
      "folder with plugins, may be repeated; looked at before AQ_PLUGIN_PATH and the installed "
      "ones")("trust-plugins", "also load plugins that other users may change");
}

std::unique_ptr<Registry> scan_plugins(const po::variables_map& options) {
  std::vector<std::filesystem::path> given;
  if (options.contains("plugin-dir"))
    for (const auto& folder : options["plugin-dir"].as<std::vector<std::string>>())
      given.emplace_back(folder);
  return std::make_unique<Registry>(plugin_search_path(given),
                                    ScanOptions{.trust = options.contains("trust-plugins")});
}

std::unique_ptr<Registry> open_registry(const po::variables_map& options) {
  auto registry = scan_plugins(options);
  for (const PluginInfo& plugin : registry->plugins())
    if (!plugin.refused.empty()) spdlog::warn("plugin {} refused: {}", plugin.path, plugin.refused);
  return registry;
}

void add_model_options(po::options_description_easy_init& add) {
  add("model", po::value<std::string>(), "folder of the checkpoint (config.json, *.safetensors)");
  add("model-type", po::value<std::string>()->default_value("auto"),
      "id of the model plugin to use, or auto");
  add_strict_option(add);
}

void add_strict_option(po::options_description_easy_init& add) {
  add("strict",
      "refuse a checkpoint with tensors or keys of config.json that the model does not know; "
      "otherwise a warning names them, such tensors are never run, and an export has them as they "
      "are");
}

std::unique_ptr<const Model> open_model(const Registry& registry, const Source& source,
                                        const po::variables_map& options) {
  auto model = registry.create_model(source, options["model-type"].as<std::string>(),
                                     options.contains("strict"));
  check_extra_tensors(model->extra_tensors(), model->extra_note(), source.directory(), options);
  return model;
}

void check_extra_tensors(const std::vector<std::string>& names, const std::string& note,
                         const std::string& directory, const po::variables_map& options) {
  constexpr std::size_t kMostNames = 3;
  if (names.empty()) return;
  const auto shown = std::span(names).first(std::min(names.size(), kMostNames));
  const std::string told = fmt::format(
      "{}: {} tensor{} that the model does not know: {}{}{}", directory, names.size(),
      names.size() == 1 ? "" : "s", fmt::join(shown, ", "),
      names.size() > kMostNames ? fmt::format(" and {} more", names.size() - kMostNames) : "",
      note.empty() ? "" : "; " + note);
  if (options.contains("strict"))
    fail(
        "{}; is config.json that of this model? Without --strict they are never run, and an export "
        "has them as they are",
        told);
  spdlog::warn("{}; they are never run, and an export has them as they are (--strict refuses them)",
               told);
}

void add_export_options(po::options_description_easy_init& add) {
  add("export", po::value<std::string>()->default_value("compressed-tensors"),
      "layout of the files: compressed-tensors or gptq (AutoGPTQ's, integers alone)");
  add("target", po::value<std::string>()->default_value("any"),
      "vllm, sglang or transformers: an error if it will not load the result, or load it wrongly; "
      "any: say so only");
}

void add_dtype_option(po::options_description_easy_init& add, const char* standard) {
  add("dtype", po::value<std::string>()->default_value(standard),
      "float32, bfloat16, or auto: what layers compute in; auto takes bfloat16 where the "
      "checkpoint "
      "is stored in it and the CPU multiplies it");
}

void add_device_option(po::options_description_easy_init& add) {
  add("device", po::value<std::string>()->default_value("auto"),
      "auto (a GPU if there is one), cpu, cuda or cuda:NUMBER");
}

void warn_of_no_effect(const po::variables_map& options, std::initializer_list<const char*> names,
                       const std::string& why) {
  std::vector<std::string> given;
  for (const char* name : names)
    if (options.contains(name) && !options[name].defaulted())
      given.push_back(fmt::format("--{}", name));
  if (given.empty()) return;
  spdlog::warn("{} {} no effect: {}", fmt::join(given, ", "), given.size() == 1 ? "has" : "have",
               why);
}

Layout layout(const po::variables_map& options) {
  const auto name = options["export"].as<std::string>();
  if (name != "compressed-tensors" && name != "gptq")
    throw UsageError(fmt::format("--export \"{}\": expected compressed-tensors or gptq", name));
  return name == "gptq" ? Layout::kGptq : Layout::kCompressedTensors;
}

std::string required(const po::variables_map& options, const char* name) {
  if (!options.contains(name)) throw UsageError(fmt::format("--{} is missing", name));
  auto value = options[name].as<std::string>();
  if (value.empty()) throw UsageError(fmt::format("--{} is empty", name));
  return value;
}

int64_t integer(const po::variables_map& options, const char* name, int64_t least, int64_t most) {
  const auto value = options[name].as<int64_t>();
  if (value < least || value > most)
    throw UsageError(fmt::format("--{} {}: expected {} to {}", name, value, least, most));
  return value;
}

bool wants_json(const po::variables_map& options) { return options.contains("json"); }

bool quiet(const po::variables_map& options) {
  return wants_json(options) || !spdlog::should_log(spdlog::level::info);
}

std::string with_commas(int64_t n) {
  std::string digits = std::to_string(n);
  for (auto i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<std::size_t>(i), ",");
  return digits;
}

std::string format_bytes(int64_t bytes) {
  constexpr std::array units{"bytes", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < units.size(); unit++) value /= 1000;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.2f} {}", value, units[unit]);
}

}  // namespace aqhost
