#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "config/recipe.h"
#include "export/compressed_tensors.h"
#include "export/container.h"
#include "plugin/format.h"
#include "plugin/model.h"
#include "plugin/registry.h"

namespace aqhost {

/// What one module will become.
struct PlannedModule {
  const Module* module = nullptr;
  ModuleRecipe recipe;
  std::shared_ptr<const Format> format;       // null: stays as it is
  std::shared_ptr<const Format> activations;  // of its input; null: not rounded
  std::vector<TensorInfo> packed;             // its tensors on disk, named by suffix
  std::string note;  // if the group size is not the requested one: "groups of 64: 128 does not
                     // divide 10944 input features"

  int64_t weights() const { return module->out_features * module->in_features; }
  /// The stored bits with scales and zero points, without the 128 bits of weight_shape.
  int64_t stored_bits() const { return 8 * stored_bytes(packed); }
  /// Whether learned rounding follows the solve of this module.
  bool refined() const { return format && recipe.refine_steps > 0 && recipe.algorithm == "gptq"; }
  /// Whether its input has a global scale.
  bool observes_input() const { return activations && activations->desc().global_scale(); }
  StoredModule stored() const {
    return {module->name, format, activations, module->out_features, module->in_features};
  }
};

/// "int4 g128", followed by the other options that the recipe gives, or "dense".
std::string describe(const PlannedModule& planned);

/// A warning and its origin: "recipe.yaml:7", or the first of the modules to which it applies.
struct PlanWarning {
  std::string where, message;
  int64_t count = 1;  // number of modules

  /// "model.layers.0.mlp.down_proj (and 8 more): ..."
  std::string text() const;
};

/// "first: message"; if `count` is more than 1, "first (and 8 more): message"; if `first` is empty,
/// the message alone.
std::string say_once(const std::string& first, int64_t count, const std::string& message);

struct Plan {
  const Container* container = &compressed_tensors();
  std::vector<PlannedModule> modules;  // every module of the model, in the model's order
  std::vector<PlanWarning> warnings;
  RunSettings settings;

  int64_t quantized_weights() const;
  double bits_per_weight() const;  // over the quantized modules, with scales
  bool needs_calibration() const;  // some module will be solved by GPTQ
  bool observes_inputs() const;    // some format of activations has a global scale
  /// Whether the model is run on calibration text at all; rounding to nearest does not need it.
  bool runs_model() const { return needs_calibration() || observes_inputs(); }
};

/// The role by which modules that share an input, and that engines fuse, are identified: q for q,
/// k, v; gate for gate and up; likewise in latent attention and the gated delta rule; otherwise the
/// role itself.
int32_t fused_role(int32_t role);

/// The role by which modules of one layer and expert that share an input are identified: as
/// fused_role(), and also one for all the first maps of an attention, and one for a router and the
/// gate of a shared expert.
int32_t input_role(int32_t role);

/// Applies `recipe` to every module before any work is done. It makes the formats and chooses the
/// group sizes: a group size that does not divide in_features is replaced by the largest smaller
/// one that is allowed and divides it, unless the recipe is strict. It checks shapes against what
/// each format can store, and refuses settings that contradict each other. `algorithm`, if not
/// empty, replaces every "gptq" and "rtn" of the recipe. An Error names the module and the line of
/// the recipe. A warning that applies to many modules is given once. If `container` is a file that
/// is made of a checkpoint, its rules apply as well, and Plan::container is that of the checkpoint.
Plan make_plan(const Model& model, const Recipe& recipe, const Registry& registry,
               const std::string& algorithm, const Container& container = compressed_tensors());

}  // namespace aqhost
