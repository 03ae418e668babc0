#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "calibrate/hessian.h"
#include "forward/layer.h"
#include "pipeline/phase_timer.h"
#include "pipeline/plan.h"
#include "quant/activations.h"
#include "quant/gptq.h"

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

/// What calibration saw of one expert.
struct ExpertCoverage {
  int32_t layer = 0, expert = 0;
  int64_t tokens = 0;
  double weight = 0;  // sum of routing weights
};

/// Called with every module once it is done, from the calling thread.
using ModuleSink = std::function<void(const PlannedModule&, ModuleResult)>;

/// Weights [E, out, in] of modules like `module`, each with its Hessian, solved as its recipe says.
QuantizedBatch solve_weights(const PlannedModule& module, const RunSettings& settings,
                             const at::Tensor& weights, const std::vector<Hessian>& hessians);

/// Takes calibration data through one layer and quantizes its modules on the way, stage by stage,
/// each stage seeing the earlier ones quantized (see Layer). Experts of one shape and format are
/// solved as one batch, in chunks that fit in memory.
class LayerQuantizer {
 public:
  LayerQuantizer(const Plan& plan, int32_t index, Layer& layer, ModuleSink sink, PhaseTimer& timer);

  /// x [windows, tokens, hidden] before the layer, replaced by what the quantized layer gives.
  /// `original`, undefined or like x's first windows: the same tokens in the model as it was,
  /// replaced by what the original layer gives; the layer then makes up for what those before did
  /// to its input (quantize_gptq's shifts), but for the experts with calibrate_all_experts.
  void run(at::Tensor& x, at::Tensor& original);

  const std::vector<ExpertCoverage>& coverage() const { return coverage_; }

 private:
  /// Modules that share one input, as rows of one matrix.
  struct Shared {
    std::vector<const PlannedModule*> modules;
    int64_t tokens = 0;
    double weight = 0;
    bool starved = false;
  };
  /// Groups to be solved at once, each with its Hessian.
  struct ExpertBatch {
    std::vector<Shared> groups;
    std::vector<Hessian> hessians;
  };
  /// The FFN's input [N, hidden], the hidden states to which its output is added, and the gate of
  /// the shared experts [N, 1]; undefined where there is no original, or no gate.
  struct Stream {
    at::Tensor f, out, gate;
  };

  void attention(at::Tensor& x, at::Tensor& original);
  void custom_attention(at::Tensor& x, at::Tensor& original);
  void quantize_stage(const at::Tensor& x, int32_t stage);
  void ffn(Stream now, Stream was);
  void dense_ffn(int32_t expert, const Stream& now, const Stream& was);
  void routed_experts(const std::vector<ExpertTokens>& routed_before, const Stream& now,
                      const Stream& was);
  std::vector<ExpertTokens> route(const at::Tensor& f) const;
  void expert_chunk(int32_t begin, int32_t end, const std::vector<ExpertTokens>& routed,
                    const std::vector<ExpertTokens>& routed_before, const Stream& now,
                    const Stream& was);
  /// Inputs of an expert in both streams: x of all its tokens, `original` of those at `shifted`.
  struct ExpertInput {
    at::Tensor x, shifted, original;
  };
  void add_expert(ExpertBatch& batch, std::vector<const PlannedModule*> modules,
                  const ExpertInput& input, const at::Tensor& c,
                  const std::function<Hessian()>& all) const;
  void add_inputs(Hessian& hessian, const at::Tensor& x, const at::Tensor& weights,
                  const at::Tensor& original) const;
  Hessian hidden_hessian(const std::vector<const PlannedModule*>& modules, int32_t expert,
                         const at::Tensor& f) const;
  const Hessian& input_hessian(const std::vector<const PlannedModule*>& modules,
                               const at::Tensor& f);

  /// Has every module that is planned so round its input; those that share it share the rounding.
  void round_inputs();
  /// Shows x [N, features] to a scale for all tokens that the modules' input may have.
  void observe(const std::vector<const PlannedModule*>& modules, const at::Tensor& x);
  bool observed(const std::vector<const PlannedModule*>& modules) const;
  /// x as the modules see it, rounded or not.
  at::Tensor seen(const std::vector<const PlannedModule*>& modules, const at::Tensor& x) const;

  /// The modules among `roles` of `expert` that are to be quantized.
  std::vector<const PlannedModule*> planned(std::initializer_list<int32_t> roles,
                                            int32_t expert) const;
  void solve_one(std::vector<const PlannedModule*> modules, const Hessian& hessian);
  void solve(const ExpertBatch& all);
  void solve_batch(const ExpertBatch& batch);
  void finish(const Shared& group, const QuantizedBatch& solved, int64_t e);
  void use(const Module& module, at::Tensor values);

  const Plan& plan_;
  const int32_t index_;
  Layer& layer_;
  ModuleSink sink_;
  PhaseTimer& timer_;
  std::map<std::pair<int32_t, int32_t>, const PlannedModule*> modules_;  // by role and expert
  std::vector<std::pair<const Module*, at::Tensor>> pending_;            // unless sequential
  std::vector<ExpertCoverage> coverage_;
  // of all tokens at the FFN's input, by its rounding, made when needed
  std::map<const Format*, Hessian> input_hessians_;
  std::map<const PlannedModule*, std::shared_ptr<ActivationRounder>> rounders_;
  double mean_routing_weight_ = 1;
  double shift_scale_ = 1;  // tokens by tokens that there are originals of
};

}  // namespace aqhost
