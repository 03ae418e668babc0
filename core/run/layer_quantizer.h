#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "calibrate/hessian.h"
#include "forward/layer.h"
#include "plan/plan.h"
#include "run/input_rounding.h"
#include "run/module_solver.h"
#include "run/phase_timer.h"

namespace aqhost {

/// What calibration saw of one expert.
struct ExpertCoverage {
  int32_t layer = 0, expert = 0;
  int64_t tokens = 0;
  double weight = 0;  // sum of routing weights
};

/// Takes calibration data through one layer and quantizes its modules on the way, stage by stage,
/// each stage seeing the earlier ones quantized (see Layer). Experts of one shape and format are
/// solved as one batch, in chunks that fit in memory.
class LayerQuantizer {
 public:
  /// `chunk_bytes`: memory for the experts that are worked on together, beside the layer's weights
  /// and the hidden states; at least one expert is taken.
  LayerQuantizer(const Plan& plan, int32_t index, Layer& layer, int64_t chunk_bytes,
                 ModuleSink sink, PhaseTimer& timer);

  /// x [windows, tokens, hidden] before the layer, replaced by what the quantized layer gives.
  /// `original`, undefined or like x's first windows: the same tokens in the model as it was,
  /// replaced by what the original layer gives; the layer then makes up for what those before did
  /// to its input (quantize_gptq's shifts), but for the experts with calibrate_all_experts.
  void run(at::Tensor& x, at::Tensor& original);

  const std::vector<ExpertCoverage>& coverage() const { return coverage_; }

 private:
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
  /// Rows of a tensor: those of an index, or all.
  struct Rows {
    at::Tensor from, index;

    int64_t size() const { return index.defined() ? index.size(0) : from.size(0); }
    at::Tensor part(int64_t begin, int64_t count) const {
      return index.defined() ? from.index_select(0, index.narrow(0, begin, count))
                             : from.narrow(0, begin, count);
    }
    at::Tensor at(const at::Tensor& rows) const {
      return from.index_select(0, index.defined() ? index.index_select(0, rows) : rows);
    }
  };

  /// An expert's inputs in both streams; those at `shifted` in the one are at `same` in the other.
  struct ExpertInput {
    Rows now, was;
    at::Tensor shifted, same;
  };
  /// Experts [begin, end) that are worked on together.
  struct Chunk {
    int32_t begin, end;
  };
  std::vector<Chunk> chunks_of(const std::vector<ExpertTokens>& routed, const Stream& now,
                               const Stream& was) const;
  void gate_and_up(const Chunk& chunk, const std::vector<ExpertTokens>& routed,
                   const std::vector<ExpertTokens>& routed_before, const Stream& now,
                   const Stream& was, std::vector<ExpertInput>& inputs);
  void down(const Chunk& chunk, const std::vector<ExpertTokens>& routed, const Stream& now,
            std::vector<ExpertInput>& inputs);
  void add_expert_output(const Stream& stream, const ExpertTokens& tokens, int32_t expert,
                         const at::Tensor& hidden) const;
  void observe_hidden(const std::vector<ExpertTokens>& routed, const at::Tensor& f);
  at::Tensor expert_hidden(int32_t expert, const Rows& f) const;
  void add_expert(SolveBatch& batch, std::vector<const PlannedModule*> modules,
                  const ExpertInput& input, const at::Tensor& c,
                  const std::function<Hessian()>& all);
  void add_inputs(Hessian& hessian, const at::Tensor& x, const at::Tensor& weights,
                  const at::Tensor& original) const;
  Hessian hidden_hessian(const std::vector<const PlannedModule*>& modules, int32_t expert,
                         const at::Tensor& f) const;
  const Hessian& input_hessian(const std::vector<const PlannedModule*>& modules,
                               const at::Tensor& f);

  /// The modules among `roles` of `expert` that are to be quantized.
  std::vector<const PlannedModule*> planned(std::initializer_list<int32_t> roles,
                                            int32_t expert) const;
  std::vector<const PlannedModule*> planned_in_experts(std::initializer_list<int32_t> roles) const;

  const Plan& plan_;
  const int32_t index_;
  Layer& layer_;
  const int64_t chunk_bytes_;
  PhaseTimer& timer_;
  std::map<std::pair<int32_t, int32_t>, const PlannedModule*> modules_;  // by role and expert
  InputRounding rounding_;
  ModuleSolver solver_;
  std::vector<ExpertCoverage> coverage_;
  // of all tokens at the FFN's input, by its rounding, made when needed
  std::map<const Format*, Hessian> input_hessians_;
  double mean_routing_weight_ = 1;
  double shift_scale_ = 1;  // tokens by tokens that there are originals of
};

}  // namespace aqhost
