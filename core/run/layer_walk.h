#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "calibrate/hessian.h"
#include "forward/layer.h"
#include "plan/plan.h"
#include "run/comm.h"
#include "run/input_rounding.h"
#include "run/phase_timer.h"
#include "run/solver.h"

namespace aqhost {

/// What calibration saw of one expert.
struct ExpertCoverage {
  int32_t layer = 0, expert = 0;
  int64_t tokens = 0;
  double weight = 0;  // the sum of their routing weights
};

/// Moves hidden states through one layer, stage by stage, and has the modules of each stage solved
/// on the way, so that each stage sees the earlier ones quantized (see Layer). It gathers Hessians
/// and gives them to the solver as tasks; the solver's new weights go into the layer. Experts are
/// worked on in chunks that fit in memory.
///
/// If a run has several ranks, each walks through the same layer with hidden states of its own, and
/// all solve together (see Solver). Counts of tokens are then those of all ranks.
class LayerWalk {
 public:
  /// `chunk_bytes` is the memory for the experts of one chunk, beside the layer's weights and the
  /// hidden states, on this rank and on every other; a chunk has at least one expert. `room` is the
  /// memory for modules that are solved together on this rank; 0: there is no limit.
  LayerWalk(const Plan& plan, int32_t index, Layer& layer, int64_t chunk_bytes, int64_t room,
            Comm& comm, SolutionSink sink, PhaseTimer& timer);
  /// The same with another solver than Solver.
  LayerWalk(const Plan& plan, int32_t index, Layer& layer, int64_t chunk_bytes, int64_t room,
            Comm& comm, std::unique_ptr<TaskSolver> solver, PhaseTimer& timer);

  /// x [windows, tokens, hidden] f32 before the layer is replaced by the output of the quantized
  /// layer. `original` is undefined, or has the hidden states of x's first windows in the original
  /// model, which are replaced by the output of the original layer. The layer then corrects what
  /// the layers before it did to its input (quantize_gptq's shifts), except for the experts under
  /// calibrate_all_experts. `before` is a copy of x, and is used only if stages are not sequential.
  /// All three may be in the host's memory while the layer is on a GPU, which then receives them
  /// batch by batch.
  void run(at::Tensor& x, at::Tensor& original, const at::Tensor& before = {});

  /// The coverage of the layer's routed experts; complete when run() has ended.
  const std::vector<ExpertCoverage>& coverage() const { return coverage_; }
  /// The routed experts of which a module had too few tokens, so that the Hessian of all tokens was
  /// mixed in.
  const std::set<int32_t>& starved() const { return starved_; }

 private:
  /// One model's hidden states on their way through the FFN.
  struct FfnStates {
    at::Tensor input;        // [N, hidden] of the FFN; undefined: this model does not run
    at::Tensor sum;          // [N, hidden]: the hidden states that the FFN's output is added to
    at::Tensor shared_gate;  // [N, 1] of the shared experts; undefined: they have no gate
  };

  /// The rows of a tensor that `index` names, or all rows if `index` is undefined.
  struct SelectedRows {
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

  /// The inputs of one expert's module in both models. Only tokens that both models route to the
  /// expert contribute to the shift: those at the positions in_quantized[i] of the one and
  /// in_original[i] of the other.
  struct ExpertInput {
    SelectedRows quantized, original;
    at::Tensor in_quantized, in_original;
  };
  /// Experts [begin, end) that are worked on together.
  struct Chunk {
    int32_t begin, end;
    int64_t room;  // for solving its modules, beside the inputs of its down projections

    int32_t size() const { return end - begin; }
  };
  using Modules = std::vector<const PlannedModule*>;

  // layer_walk.cc
  at::Device device() const { return layer_.options().device(); }
  void attention(at::Tensor& x, at::Tensor& original);
  void observe_stage(const at::Tensor& x, const std::vector<Modules>& modules,
                     const std::vector<Attention::Tensors>& current);
  void custom_attention(at::Tensor& x, at::Tensor& original);
  void custom_attention_stage(const at::Tensor& x, int32_t stage);
  FfnStates ffn_states(const at::Tensor& x) const;
  void ffn(FfnStates quantized, FfnStates original);
  void dense_ffn(int32_t expert, const FfnStates& quantized, const FfnStates& original);
  const Hessian& input_hessian(const Modules& modules, const at::Tensor& input);
  void add_inputs(Hessian& hessian, const at::Tensor& x, const at::Tensor& weights,
                  const at::Tensor& original) const;
  void solve_one(const Modules& modules, Hessian hessian);
  void solve(SolveTask task);
  SolveGroup group_of(const Modules& modules, Hessian hessian) const;
  /// The modules of `roles` of `expert` that are to be quantized.
  Modules planned(const std::vector<int32_t>& roles, int32_t expert) const;

  // layer_walk_experts.cc
  std::vector<ExpertTokens> route(const at::Tensor& input) const;
  void routed_experts(const std::vector<ExpertTokens>& routed_original, const FfnStates& quantized,
                      const FfnStates& original);
  void count_tokens(const std::vector<ExpertTokens>& routed);
  std::vector<Chunk> chunks_of(const std::vector<ExpertTokens>& routed, const FfnStates& quantized,
                               const FfnStates& original) const;
  void gate_and_up(const Chunk& chunk, const std::vector<ExpertTokens>& routed,
                   const std::vector<ExpertTokens>& routed_original, const FfnStates& quantized,
                   const FfnStates& original, std::vector<ExpertInput>& inputs);
  void down(const Chunk& chunk, const std::vector<ExpertTokens>& routed, const FfnStates& quantized,
            std::vector<ExpertInput>& inputs);
  void add_expert_output(const FfnStates& states, const ExpertTokens& tokens, int32_t expert,
                         const at::Tensor& hidden) const;
  void observe_hidden(const std::vector<ExpertTokens>& routed, const at::Tensor& input);
  at::Tensor expert_hidden(int32_t expert, const SelectedRows& input) const;
  template <typename Body>
  void for_experts(const Chunk& chunk, const Body& body) const;
  std::optional<SolveGroup> group_of_expert(const Modules& modules, const ExpertInput& input,
                                            const at::Tensor& routing_weights,
                                            const std::function<Hessian()>& all_tokens);
  void solve_experts(const Chunk& chunk, std::vector<std::optional<SolveGroup>> groups);
  Hessian hidden_hessian(const Modules& modules, int32_t expert, const at::Tensor& input) const;
  Modules planned_in_experts(std::initializer_list<int32_t> roles) const;

  const Plan& plan_;
  const int32_t index_;
  Layer& layer_;
  const int64_t chunk_bytes_, room_;
  Comm& comm_;
  PhaseTimer& timer_;
  std::map<std::pair<int32_t, int32_t>, const PlannedModule*> modules_;  // by role and expert
  InputRounding rounding_;
  std::unique_ptr<TaskSolver> solver_;
  std::vector<NewWeight> pending_;  // set at the end of the layer if stages are not sequential
  std::vector<ExpertCoverage> coverage_;
  std::set<int32_t> starved_;
  // the Hessians of all tokens at the FFN's input, by the format to which the input is rounded;
  // each is computed when it is needed
  std::map<const Format*, Hessian> input_hessians_;
  std::mutex input_hessians_mutex_;
  double mean_routing_weight_ = 1;
  int64_t all_tokens_ = 0;  // the number of calibration tokens
  double shift_scale_ = 1;  // all calibration tokens / tokens that also run through the original
};

}  // namespace aqhost
