#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "config/recipe.h"
#include "export/layout.h"
#include "plugin/format.h"
#include "plugin/model.h"
#include "plugin/registry.h"

namespace aqhost {

/// What one module will become.
struct PlannedModule {
  const Module* module = nullptr;
  ModuleRecipe recipe;
  std::shared_ptr<const Format> format;       // null: stays as it is
  std::shared_ptr<const Format> activations;  // of its input; null: as it comes
  std::vector<TensorInfo> packed;             // its tensors on disk, by suffix
  std::string note;  // of another group size than asked for: "groups of 64: 128 does not divide
                     // 10944 input features"

  int64_t weights() const { return module->out_features * module->in_features; }
  /// Stored bits with scales and zero points, without the 128 bits of weight_shape.
  int64_t stored_bits() const { return 8 * stored_bytes(packed); }
  /// Whether learned rounding follows its solve.
  bool refined() const { return format && recipe.refine_steps > 0 && recipe.algorithm == "gptq"; }
  /// Whether its input has a scale for all tokens.
  bool observes_input() const { return has_input_global(activations.get()); }
};

/// "int4 g128", with the options that are not the format's own, or "dense".
std::string describe(const PlannedModule& planned);

/// A warning, with where it comes from: "recipe.yaml:7", or the first of the modules that it is
/// true of.
struct PlanWarning {
  std::string where, message;
  int64_t count = 1;  // of modules

  /// "model.layers.0.mlp.down_proj (and 8 more): ..."
  std::string text() const;
};

/// "first: message", or with a count "first (and 8 more): message"; without `first` the message.
std::string say_once(const std::string& first, int64_t count, const std::string& message);

struct Plan {
  Layout layout = Layout::kCompressedTensors;
  std::vector<PlannedModule> modules;  // every module of the model, in its order
  std::vector<PlanWarning> warnings;
  RunSettings settings;

  int64_t quantized_weights() const;
  double bits_per_weight() const;  // over the quantized modules, with scales
  bool needs_calibration() const;  // some module is to be solved by GPTQ
  bool observes_inputs() const;    // a format of activations has a scale for all tokens
  /// Whether the model is run over calibration text at all: rounding to nearest needs none.
  bool runs_model() const { return needs_calibration() || observes_inputs(); }
};

/// The role by which modules that have one input, and that engines fuse, are known: q of q, k, v;
/// gate of gate and up; else the role itself.
int32_t fused_role(int32_t role);

/// Applies `recipe` to every module before any work is done: formats are made, group sizes settled
/// (one that does not divide in_features becomes the largest allowed smaller one that does, unless
/// the recipe is strict), shapes checked against what each format can store, and settings that do
/// not go together refused. `algorithm`, if not empty, replaces every "gptq" and "rtn" of the
/// recipe. Error names module and recipe line. Warnings that say the same of many modules are one.
Plan make_plan(const Model& model, const Recipe& recipe, const Registry& registry,
               const std::string& algorithm, Layout layout = Layout::kCompressedTensors);

}  // namespace aqhost
