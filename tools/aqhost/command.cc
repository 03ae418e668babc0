#include "command.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <span>

#include "base/error.h"
#include "export/gguf.h"
#include "plan/engine.h"

namespace aqhost {

void add_plugin_options(OptionTable& table, PluginOptions& options) {
  table.list("plugin-dir", "DIR", options.plugin_folders,
             "Look for plugins in this folder before the folders of AQ_PLUGIN_PATH and the "
             "installed plugins. The option may be repeated.");
  table.flag("trust-plugins", options.trust_plugins,
             "Also load plugins that other users may change.");
  table.flag("json", options.json, "Print the result as JSON.");
}

std::unique_ptr<Registry> scan_plugins(const PluginOptions& options) {
  const auto& folders = options.plugin_folders;
  return std::make_unique<Registry>(plugin_search_path({folders.begin(), folders.end()}),
                                    ScanOptions{.trust = options.trust_plugins});
}

std::unique_ptr<Registry> open_registry(const PluginOptions& options) {
  auto registry = scan_plugins(options);
  for (const PluginInfo& plugin : registry->plugins())
    if (!plugin.refused.empty()) spdlog::warn("plugin {} refused: {}", plugin.path, plugin.refused);
  return registry;
}

void add_family_options(OptionTable& table, FamilyOptions& options) {
  table.text("model-type", "ID", options.model_type,
             "Use the model plugin with this id. With auto, config.json decides.");
  table.flag("strict", options.strict,
             "Refuse a checkpoint with tensors or keys of config.json that the model does not "
             "know. Otherwise a warning names them; such tensors are never run, and an export "
             "contains them unchanged.");
  add_plugin_options(table, options);
}

void add_model_options(OptionTable& table, ModelOptions& options) {
  table.model("model", options.model, ModelPart::kWeights, kModelHelp)->required();
  add_family_options(table, options);
}

std::unique_ptr<const Model> open_model(const Registry& registry, const Source& source,
                                        const FamilyOptions& options) {
  auto model = registry.create_model(source, options.model_type, options.strict);
  check_extra_tensors(model->extra_tensors(), model->extra_note(), source.directory(), options);
  return model;
}

void check_extra_tensors(const std::vector<std::string>& names, const std::string& note,
                         const std::string& directory, const FamilyOptions& options) {
  constexpr std::size_t kMaximumNames = 3;
  if (names.empty()) return;
  const auto shown = std::span(names).first(std::min(names.size(), kMaximumNames));
  const std::string found = fmt::format(
      "{}: {} tensor{} that the model does not know: {}{}{}", directory, names.size(),
      names.size() == 1 ? "" : "s", fmt::join(shown, ", "),
      names.size() > kMaximumNames ? fmt::format(" and {} more", names.size() - kMaximumNames) : "",
      note.empty() ? "" : "; " + note);
  if (options.strict)
    fail(
        "{}; is config.json that of this model? Without --strict they are never run, and an export "
        "has them as they are",
        found);
  spdlog::warn("{}; they are never run, and an export has them as they are (--strict refuses them)",
               found);
}

void add_export_options(OptionTable& table, ExportOptions& options) {
  std::vector<std::string> names;
  for (const Container* container : containers()) names.push_back(container->name());
  table.choice(
      "export", names, options.container,
      "Write the export in this container: compressed-tensors, gptq for AutoGPTQ's, which "
      "stores only integer formats, or gguf: a compressed-tensors export whose formats GGUF "
      "can hold, with the file model.gguf for llama.cpp in it.");
  table.text(
      "target", "ENGINE", options.target,
      "Fail if this engine (vllm, sglang, transformers, or llamacpp, which reads a GGUF file "
      "made of the export) will not load it, or will load it and give wrong answers. With "
      "any, this is only reported.");
  std::vector<std::string> targets{"any"};
  for (const Engine& engine : engines()) targets.push_back(engine.id);
  table.suggest("target", targets);
  table.integer(
      "tensor-parallel", "N", options.gpus, 1, 1024,
      "Say what vLLM and SGLang do with the export on N GPUs, over which they divide each "
      "layer.");
}

const Container& container_of(const ExportOptions& options) {
  return *find_container(options.container);
}

bool makes_gguf(const ExportOptions& options) { return options.container == gguf().name(); }

void add_device_options(OptionTable& table, DeviceOptions& options) {
  table.text("device", "NAME", options.name,
             "Run the model on this device: cpu, cuda, cuda:NUMBER, or auto, which is a GPU if "
             "there is one.");
  table.suggest("device", kDeviceNames);
  table.integer("threads", "N", options.threads, 0, 1024,
                "Use this number of CPU threads; 0 means one per core.");
}

void set_threads(const DeviceOptions& options) {
  if (options.threads > 0) at::set_num_threads(static_cast<int>(options.threads));
}

void add_resume_option(OptionTable& table, std::string& resume, const char* help) {
  table.choice("resume", {"auto", "never", "required"}, resume, help);
}

Resume resume_of(const std::string& resume) {
  if (resume == "never") return Resume::kNever;
  return resume == "required" ? Resume::kRequired : Resume::kAuto;
}

void add_recipe_option(OptionTable& table, std::string& file) {
  table.text("config", "FILE", file,
             "Follow this recipe, in YAML or JSON, which says what each module becomes (see "
             "configs/README.md). Without a recipe, modules become int4 in groups of 128.");
  table.suggest("config", {"*.yaml", "*.yml", "*.json"});
}

void add_dtype_option(OptionTable& table, std::string& dtype) {
  table.choice("dtype", {"auto", "float32", "bfloat16"}, dtype,
               "Compute layers in this type: float32, bfloat16, or auto, which is bfloat16 if the "
               "checkpoint stores bfloat16 and the device can multiply it, and otherwise float32.");
}

void add_window_option(OptionTable& table, int64_t& window) {
  table.integer("window", "N", window, 2, 1 << 24, "Cut the text into windows of N tokens.");
}

void warn_of_no_effect(const std::set<std::string>& given, std::initializer_list<const char*> names,
                       const std::string& why) {
  std::vector<std::string> found;
  for (const char* name : names)
    if (given.contains(name)) found.push_back(fmt::format("--{}", name));
  if (found.empty()) return;
  spdlog::warn("{} {} no effect: {}", fmt::join(found, ", "), found.size() == 1 ? "has" : "have",
               why);
}

bool quiet(const CommandOptions& options) {
  return options.json || !spdlog::should_log(spdlog::level::info);
}

}  // namespace aqhost
