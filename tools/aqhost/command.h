#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "option_table.h"
#include "plan/plan.h"
#include "plugin/registry.h"
#include "run/resume.h"

namespace aqhost {

/// A command of aqhost.
struct Command {
  const char* name;
  const char* summary;  // completes "aqhost NAME - ..."
  const char* usage;    // lines without "aqhost"
  const char* details;  // paragraphs of the help text, each of them one line
  /// Adds the command's options to the table, and returns the function to call once the table has
  /// set them. It prints the command's result to stdout and throws Error or UsageError.
  std::function<void()> (*prepare)(OptionTable& table);
};

extern const Command kQuantize, kInspect, kPlan, kAllocate, kEval, kCompare, kConvert, kReport,
    kStatus, kTokenize, kVerify, kPlugins;

/// Every command has options of this type or of one derived from it.
struct CommandOptions {
  std::set<std::string> given;         // the names of the options on the command line
  std::vector<std::string> arguments;  // the command line, without the name of the command
  bool json = false;
};

/// Command::prepare of a command whose options are `Options`.
template <typename Options, void (*add_options)(OptionTable&, Options&),
          void (*run)(const Options&)>
std::function<void()> prepare(OptionTable& table) {
  auto options = std::make_shared<Options>();
  add_options(table, *options);
  return [options, &table] {
    options->given = table.given();
    options->arguments = table.arguments();
    run(*options);
  };
}

struct PluginOptions : CommandOptions {
  std::vector<std::string> plugin_folders;
  bool trust_plugins = false;
};
/// Adds --plugin-dir, --trust-plugins and --json.
void add_plugin_options(OptionTable& table, PluginOptions& options);
/// Opens the plugins of these folders and of the usual ones.
std::unique_ptr<Registry> scan_plugins(const PluginOptions& options);
/// scan_plugins(), with a warning for each plugin that was refused.
std::unique_ptr<Registry> open_registry(const PluginOptions& options);

struct FamilyOptions : PluginOptions {
  std::string model_type = "auto";
  bool strict = false;
};
/// Adds --model-type, --strict and the options of add_plugin_options().
void add_family_options(OptionTable& table, FamilyOptions& options);
/// The adapter of `source`. Tensors that it does not know are a warning, or, with --strict, an
/// Error.
std::unique_ptr<const Model> open_model(const Registry& registry, const Source& source,
                                        const FamilyOptions& options);
/// Warns about these tensors of the checkpoint in `directory`, which the model does not know, or
/// throws an Error with --strict. `note` is Model::extra_note(). Does nothing if there are none.
void check_extra_tensors(const std::vector<std::string>& names, const std::string& note,
                         const std::string& directory, const FamilyOptions& options);

/// The help text of --model.
inline constexpr const char* kModelHelp =
    "Read the checkpoint in this folder (config.json, *.safetensors), or the model of this id "
    "(ORG/NAME or ORG/NAME@REVISION) that hf download has put into the cache of the Hugging Face "
    "Hub. aqhost downloads nothing.";

struct ModelOptions : FamilyOptions {
  std::string model;
};
/// Adds --model and the options of add_family_options().
void add_model_options(OptionTable& table, ModelOptions& options);

/// The container of an export, and the engine that must load it.
struct ExportOptions {
  std::string container = "compressed-tensors", target = "any";
  int64_t gpus = 1;  // of an engine with tensor parallelism
};
/// Adds --export, --target and --tensor-parallel.
void add_export_options(OptionTable& table, ExportOptions& options);
const Container& container_of(const ExportOptions& options);
/// Whether a GGUF file is made of the export.
bool makes_gguf(const ExportOptions& options);

/// Values of --device that completion offers.
inline const std::vector<std::string> kDeviceNames{"auto", "cpu", "cuda"};

/// Where a model runs: a name for open_device(), and the number of CPU threads, 0 for one per core.
struct DeviceOptions {
  std::string name = "auto";
  int64_t threads = 0;
};
/// Adds --device and --threads.
void add_device_options(OptionTable& table, DeviceOptions& options);
/// Makes LibTorch use options.threads.
void set_threads(const DeviceOptions& options);

/// Adds --resume.
void add_resume_option(OptionTable& table, std::string& resume, const char* help);
Resume resume_of(const std::string& resume);

/// Add --config, --dtype and --window.
void add_recipe_option(OptionTable& table, std::string& file);
void add_dtype_option(OptionTable& table, std::string& dtype);
void add_window_option(OptionTable& table, int64_t& window);

/// Warns about those of `names` that are `given` although they have no effect, and says why.
void warn_of_no_effect(const std::set<std::string>& given, std::initializer_list<const char*> names,
                       const std::string& why);

/// Whether a run shows no progress, which is for people: with --json, or below log level info.
bool quiet(const CommandOptions& options);

}  // namespace aqhost
