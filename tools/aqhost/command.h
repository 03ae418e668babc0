#pragma once

#include <boost/program_options.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "plan/plan.h"
#include "plugin/registry.h"

namespace aqhost {
namespace po = boost::program_options;

/// One thing that aqhost does. `run` prints its result to stdout and throws Error or UsageError.
struct Command {
  const char* name;
  const char* summary;  // one line
  const char* details;  // shown by --help, below the usage line
  void (*add_options)(po::options_description_easy_init add);
  void (*run)(const po::variables_map& options);
  const char* positional = nullptr;  // the option that bare arguments are values of, if any
};

extern const Command kQuantize, kInspect, kPlan, kEval, kCompare, kStatus, kTokenize, kVerify,
    kPlugins;

/// Adds --plugin-dir and --trust-plugins, and opens what is found there and in the usual places.
void add_plugin_options(po::options_description_easy_init& add);
std::unique_ptr<Registry> scan_plugins(const po::variables_map& options);
/// scan_plugins(), with a warning of each that was refused.
std::unique_ptr<Registry> open_registry(const po::variables_map& options);

/// Adds --model, --model-type and --strict.
void add_model_options(po::options_description_easy_init& add);
void add_strict_option(po::options_description_easy_init& add);
/// The adapter of `source` by --model-type, with a warning of tensors that it does not know, which
/// --strict makes an Error.
std::unique_ptr<const Model> open_model(const Registry& registry, const Source& source,
                                        const po::variables_map& options);
/// The warning, or the Error, of such tensors, with what Model::extra_note() says of them; none if
/// there are none.
void check_extra_tensors(const std::vector<std::string>& names, const std::string& note,
                         const std::string& directory, const po::variables_map& options);

/// Adds --export, the layout of the files, and --target, the engine that must load them.
void add_export_options(po::options_description_easy_init& add);
Layout layout(const po::variables_map& options);

/// Adds --dtype, see compute_type().
void add_dtype_option(po::options_description_easy_init& add, const char* standard);

/// Adds --device, see open_device().
void add_device_option(po::options_description_easy_init& add);

/// Warns of those of `names` that were given although they have no effect, and says why.
void warn_of_no_effect(const po::variables_map& options, std::initializer_list<const char*> names,
                       const std::string& why);

/// The value of a required option; UsageError names it if it is not there.
std::string required(const po::variables_map& options, const char* name);
/// An integer option within [least, most]; UsageError otherwise.
int64_t integer(const po::variables_map& options, const char* name, int64_t least, int64_t most);

bool wants_json(const po::variables_map& options);
/// Progress is for people: none with --json or below log level info.
bool quiet(const po::variables_map& options);

/// "12,345,678".
std::string with_commas(int64_t n);
/// "6.2 MB", in powers of 1000.
std::string format_bytes(int64_t bytes);

}  // namespace aqhost
