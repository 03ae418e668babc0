#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <future>
#include <utility>
#include <vector>

#include "calibrate/hessian.h"
#include "forward/layer.h"
#include "plan/plan.h"
#include "quant/gptq.h"
#include "run/input_rounding.h"
#include "run/phase_timer.h"

namespace aqhost {

/// How one module came out.
struct ModuleResult {
  QuantizedMatrix matrix;
  double loss = 0, rtn_loss = 0;  // see QuantizedBatch
  bool rtn = false;               // rounded to nearest, not solved
  bool calibrated = false;        // the losses and the next two mean something
  int64_t tokens = 0;             // its Hessian was made of (its own; see `starved`)
  double weight = 0;              // the sum of their routing weights to the routing power
  bool starved = false;           // too few: mixed with the Hessian of all tokens
  float input_global = 1;         // of activations with a scale for all tokens
};

/// Modules with how they came out.
using SolvedModules = std::vector<std::pair<const PlannedModule*, ModuleResult>>;

/// Called with the modules that were solved together, once they are done; one call at a time, and
/// on a GPU from another thread, while the GPU goes on.
using ModuleSink = std::function<void(SolvedModules)>;

/// Weights [E, out, in] of modules like `module`, each with its Hessian, solved as its recipe says.
QuantizedBatch solve_weights(const PlannedModule& module, const RunSettings& settings,
                             const at::Tensor& weights, const std::vector<Hessian>& hessians);

/// Modules that share one input, as rows of one matrix.
struct SharedInput {
  std::vector<const PlannedModule*> modules;
  int64_t tokens = 0;
  double weight = 0;
  bool starved = false;
};

/// Groups to be solved at once, each with its Hessian.
struct SolveBatch {
  std::vector<SharedInput> groups;
  std::vector<Hessian> hessians;
};

/// Solves modules of a layer, hands each to the sink, and has the layer go on with their new
/// weights: at once, or, where the recipe's stages are not sequential, when told to. One thread.
class ModuleSolver {
 public:
  ModuleSolver(const RunSettings& settings, Layer& layer, const InputRounding& rounding,
               ModuleSink sink, PhaseTimer& timer);

  void solve_one(std::vector<const PlannedModule*> modules, const Hessian& hessian);
  void solve(const SolveBatch& batch);
  /// Gives the layer what was held back.
  void use_pending();
  /// Until the sink has everything. Error if it threw.
  void wait();

 private:
  void solve_alike(const SolveBatch& batch);
  void finish(const SolveBatch& batch, const QuantizedBatch& solved);

  const RunSettings& settings_;
  Layer& layer_;
  const InputRounding& rounding_;
  ModuleSink sink_;
  PhaseTimer& timer_;
  std::vector<std::pair<const Module*, at::Tensor>> pending_;
  std::future<void> finishing_;
};

}  // namespace aqhost
