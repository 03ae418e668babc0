#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/field.h"
#include "base/json.h"

namespace aqhost {

/// The result of quantizing one module.
struct ModuleReport {
  int32_t layer = -1, expert = -1;  // -1: outside the layers; no routed expert
  std::string format;               // "int4"
  std::string activations;          // the format of the input; "bf16" if it is not rounded
  std::string algorithm;            // "gptq" or "rtn"
  std::string note;  // why the algorithm is not the one of the recipe; empty if it is
  int64_t group_size = 0, out_features = 0, in_features = 0;
  double bits_per_weight = 0;  // with scales
  /// What is known of a module that was solved under a Hessian.
  struct Solve {
    double loss = 0, rtn_loss = 0;  // see QuantizedBatch
    int64_t tokens = 0;             // the number of tokens in the Hessian
    double weight = 0;              // the sum of their routing weights to the routing power
    bool starved = false;           // too few tokens: the Hessian of all tokens was mixed in
  };
  std::optional<Solve> solve;
};

/// The calibration tokens of one expert.
struct ExpertReport {
  int32_t layer = 0, expert = 0;
  int64_t tokens = 0;
  double weight = 0;  // the sum of their routing weights
  bool starved = false;
  int64_t needed = 0;  // the number of tokens below which the expert is starved
};

/// The result of learned rounding in one layer: the mean squared errors of the layer's output.
struct Refinement {
  int32_t layer = 0;
  double error_before = 0, error_after = 0;
};

/// The seconds that each phase of a run took, in the order in which the phases first began.
using PhaseSeconds = std::vector<std::pair<std::string, double>>;

double total(const PhaseSeconds& seconds);
/// The seconds of each phase between two readings of one timer, without phases that took none.
PhaseSeconds difference(const PhaseSeconds& later, const PhaseSeconds& earlier);
/// [[phase, seconds]] in the same order, and the inverse. An Error names the file and the field.
Json to_json(const PhaseSeconds& seconds);
PhaseSeconds parse_seconds(const Field& json);

/// The seconds of one layer, or of what follows the last layer, whose number is then that of all
/// layers. The seconds in which the run waited for the files of the layer before ("write") are
/// among them.
struct LayerSeconds {
  int32_t layer = 0;
  PhaseSeconds seconds;
};

/// What a run reports about one unit, or about several.
struct UnitReport {
  std::map<std::string, ModuleReport> modules;  // by name
  std::vector<ExpertReport> experts;
  std::vector<Refinement> refined;
  std::vector<LayerSeconds> layers;

  /// Adds what `other` reports about further units.
  void append(UnitReport other);
  double loss() const;
  double rtn_loss() const;
  int64_t starved_experts() const;
};
Json to_json(const UnitReport& report);
/// The inverse of to_json(). An Error names the file and the field.
UnitReport parse_unit_report(const Field& json);

struct CalibrationReport {
  struct File {
    std::string file;
    double weight = 1;  // of the file's share of the windows
    int64_t windows = 0, available = 0, documents = 0, tokens = 0, unused_tokens = 0;
    int64_t joined_windows = 0;        // the number of windows that contain several documents
    std::optional<int64_t> separator;  // the token between these
  };
  struct Balance {
    int64_t pool = 0;
    double spread_before = 0, spread_after = 0;
  };
  std::vector<File> files;
  std::optional<Balance> balance;  // of --balance-experts
  int64_t windows = 0, random_windows = 0, seqlen = 0;
  uint64_t seed = 0;
};

/// How a run was started.
struct RunSetup {
  std::vector<std::string> command;  // the arguments of aqhost; empty if they are not known
  std::string model;                 // the folder of the checkpoint
  std::string recipe_file, recipe;   // its name and its text; empty if none was given
  int64_t original_bytes = 0;        // of all tensors of the checkpoint, as stored
  /// What identifies the run (see run_manifest()), without what each module becomes.
  Json identity = Json::object();
};

/// What an engine will do with the export (see Loadable).
struct EngineReport {
  std::string name, version;          // "vLLM", "0.33"
  bool gguf = false;                  // it reads the GGUF file that can be made of the export
  bool run = false;                   // false: its source was read, and it was not run
  bool loads = false, right = false;  // whether it loads the export; and computes the same
  std::vector<std::string> problems, notes;  // why it does not; what is worth knowing
  std::string remedy;                        // what would make the export loadable; may be empty
};

/// What one rank of a run says about itself.
struct RankReport {
  /// The bytes that it sent at one station of all layers, and the seconds that it spent in sending,
  /// receiving and waiting there.
  struct Traffic {
    std::string station;  // "reduce"
    int64_t bytes = 0;
    double seconds = 0;
  };
  std::vector<Traffic> traffic;
  int64_t peak_memory_bytes = 0;             // of the process
  std::optional<int64_t> peak_device_bytes;  // of tensors on a GPU
};
Json to_json(const RankReport& report);
/// The inverse of to_json(). An Error names the field.
RankReport parse_rank_report(const Field& json);

/// The bytes of memory that each phase of a run was seen to hold, see PhaseTimer.
using PhaseBytes = std::map<std::string, int64_t>;

/// The report on a run, which an export contains as quantization_report.json.
struct RunReport {
  std::string model_type, device;
  RunSetup setup;
  std::vector<EngineReport> engines;
  UnitReport units;     // of all units together
  int64_t weights = 0;  // the number of weights in the quantized modules
  double bits_per_weight = 0;
  PhaseSeconds seconds;                      // of all tries, if a run was resumed
  PhaseBytes memory;                         // of this try and this process
  PhaseBytes device_memory;                  // the same of tensors on a GPU; empty on the CPU
  int64_t bytes = 0;                         // of all tensors
  int64_t peak_memory_bytes = 0;             // of the process; the maximum of all ranks
  std::optional<int64_t> peak_device_bytes;  // of tensors on a GPU; the maximum of all ranks
  std::vector<RankReport> ranks;             // of this try; empty if one process did the run
  int64_t resumed_layers = 0;                // the number that an earlier try had finished
  std::optional<CalibrationReport> calibration;

  double total_seconds() const { return total(seconds); }
};

/// The text of quantization_report.json:
///   modules  name -> {layer, format, group_size, bits_per_weight, algorithm, loss, rtn_loss, ...}
///   experts  [{layer, expert, tokens, weight, needed, starved}]
///   refined  [{layer, error_before, error_after}], if a recipe has `refine`
///   layers   [{layer, seconds{phase}}] of the first process; the number of layers stands for what
///            follows the last one
///   run      {command, model, recipe_file, recipe, original_bytes, identity}: see RunSetup
///   engines  [{name, version, loads, right, problems, notes, ...}]: see EngineReport
///   totals   {modules, weights, bits_per_weight, loss, rtn_loss, seconds{phase}, memory{phase},
///             peak_memory_bytes, bytes, resumed_layers, on a GPU also device_memory{phase} and
///             peak_device_bytes, and, if several processes did the run,
///             ranks[{peak_memory_bytes, traffic{station -> {bytes, seconds}}}]}
///   card_sha256  of README.md as the run wrote it (Exporter::commit)
///   files    every file of the export, which a later run with --overwrite may replace; it is added
///            when the export is put in place (Exporter::commit)
Json to_json(const RunReport& report);
/// The inverse of to_json(). An Error names the file and the field. A report of an earlier version
/// of aqhost, which says less, is an Error as well.
RunReport parse_run_report(const Field& json);

}  // namespace aqhost
