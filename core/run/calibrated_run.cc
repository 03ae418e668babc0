#include "run/calibrated_run.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>

#include "base/counted.h"
#include "base/error.h"
#include "forward/embedding_and_head.h"
#include "forward/layer.h"
#include "run/layer_reader.h"
#include "run/layer_walk.h"
#include "run/refine.h"
#include "tensor/device.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// Solves lm_head, if the plan quantizes it. Its input is the normed output of the last layer.
/// `shift_scale` is the number of all windows over that of the windows in `original_x`, of all
/// ranks. Rank 0 solves it, within `room` bytes (see SolveRoom).
void quantize_head(const Source& original, const Model& model, const Plan& plan,
                   const at::Tensor& x, const at::Tensor& original_x, double shift_scale,
                   int64_t room, Comm& comm, UnitSink& sink) {
  for (const PlannedModule& planned : plan.modules) {
    if (!planned.format || planned.module->key.layer >= 0) continue;
    const Module& module = *planned.module;
    if (module.key.role != AQ_ROLE_LM_HEAD)
      fail("{}: only lm_head can be quantized outside the layers", module.name);
    const Norm final_norm(original, model, {-1, AQ_ROLE_FINAL_NORM, AQ_EXPERT_NONE, AQ_PART_WEIGHT},
                          module.in_features);
    Hessian hessian(module.in_features);
    const int64_t originals = original_x.defined() ? original_x.size(0) : 0;
    for (int64_t w = 0; w < x.size(0); w++) {
      const at::Tensor input = final_norm(x[w]);
      hessian.add(input, {});
      if (w < originals) hessian.add_shift(input, {}, final_norm(original_x[w]), shift_scale);
    }
    std::vector<Hessian> hessians{std::move(hessian)};
    reduce_hessians(comm, hessians, {0});
    if (comm.rank() != 0) continue;
    hessian = std::move(hessians.front());
    Solution solution;
    solution.tokens = hessian.tokens();
    solution.weight = hessian.weight();
    std::vector<Hessian> of_head;
    of_head.push_back(std::move(hessian));
    const QuantizedBatch batch = solve_weights(
        {&planned}, plan.settings,
        read_tensor(original, module.weight, {module.out_features, module.in_features})
            .unsqueeze(0),
        std::move(of_head), room);
    solution.planned = &planned;
    solution.matrix = batch.matrix(0, 0, module.out_features);
    solution.loss = batch.loss.sum().item<double>();
    solution.rtn_loss = batch.rtn_loss.sum().item<double>();
    solution.rtn = batch.rtn[0];
    solution.calibrated = true;
    std::vector<Solution> solutions;
    solutions.push_back(std::move(solution));
    sink.take(solutions);
  }
}

bool has_head(const Plan& plan) {
  return std::any_of(plan.modules.begin(), plan.modules.end(),
                     [](const PlannedModule& m) { return m.format && m.module->key.layer < 0; });
}

/// The last layer that must be run, because a module of it, or lm_head, is quantized; -1 if there
/// is none.
int32_t last_layer(const Model& model, const Plan& plan) {
  if (has_head(plan)) return model.desc().n_layers - 1;
  int32_t last = -1;
  for (const PlannedModule& m : plan.modules)
    if (m.format) last = std::max(last, m.module->key.layer);
  return last;
}

/// Moves the hidden states of a rank's calibration windows through the layers.
class Calibrator {
 public:
  Calibrator(const Source& original, const Model& model, const Plan& plan,
             const at::Tensor& windows, const CalibratedRunOptions& options)
      : original_(original),
        model_(model),
        plan_(plan),
        comm_(*options.comm),
        windows_(own_windows(plan, windows, comm_)),
        options_(at::TensorOptions(options.device).dtype(options.dtype)),
        seed_(options.seed),
        chunk_bytes_(options.chunk_bytes),
        room_(options.room),
        place_(options.states) {}

  /// `states` are those behind the last finished layer; they are undefined if there is none.
  void run(BoundaryStates states, UnitSink& sink, PhaseTimer& timer) {
    begin(std::move(states), sink.next());
    const int32_t layers = model_.desc().n_layers, last = last_layer(model_, plan_);
    if (sink.next() <= last) run_layers_to(last, sink, timer);
    comm_.station("head");
    for (; sink.next() < layers; sink.finish_unit()) sink.begin_unit();  // nothing to solve
    if (sink.next() > layers) return;
    sink.begin_unit();
    timer.begin("calibrate");
    if (has_head(plan_))
      quantize_head(original_, model_, plan_, x_.cpu(),
                    original_x_.defined() ? original_x_.cpu() : original_x_, windows_.shift_scale,
                    room_.head, comm_, sink);
    timer.end();
    sink.finish_unit();
  }

 private:
  RefineOptions refine_of(int32_t layer) const { return refine_options(plan_, layer, seed_); }

  at::Tensor empty_states(int64_t windows) const {
    return place_.empty({windows, windows_.ids.size(1), model_.desc().hidden_size});
  }

  void begin(BoundaryStates states, int32_t next) {
    if (states.x.defined()) {
      x_ = states.x.to(place_.device);
      if (states.original.defined()) original_x_ = states.original.to(place_.device);
    } else if (next == 0) {
      x_ = empty_states(windows_.ids.size(0));
      embed_tokens_into(original_, model_, windows_.ids, x_);
      if (windows_.originals == 0) return;
      original_x_ = empty_states(windows_.originals);
      original_x_.copy_(x_.narrow(0, 0, windows_.originals));
    }
  }

  void run_layers_to(int32_t last, UnitSink& sink, PhaseTimer& timer) {
    const int32_t first = sink.next();
    LayerReader reader(options_.device(), last + 1 - first, [this, first](int32_t turn) {
      // gradients need more digits than bfloat16 has
      const bool wide = refine_of(first + turn).steps > 0;
      return Layer(original_, model_, first + turn, windows_.ids.size(1),
                   wide ? options_.dtype(at::kFloat) : options_);
    });
    for (int32_t l = first; l <= last; l++) {
      timer.begin("read");
      sink.begin_unit();
      quantize_layer(reader.next(), l, sink, timer);
      sink.finish_unit({x_, original_x_});
    }
  }

  void quantize_layer(Layer& layer, int32_t index, UnitSink& sink, PhaseTimer& timer) {
    const RefineOptions refine = refine_of(index);
    std::vector<Solution> solved;
    const auto take = [&](std::vector<Solution> solutions) {
      if (refine.steps > 0)
        std::move(solutions.begin(), solutions.end(), std::back_inserter(solved));
      else
        sink.take(solutions);
    };
    at::Tensor before;
    if (refine.steps > 0 || !plan_.settings.sequential) before = place_.copy_of(x_);
    LayerWalk walk(plan_, index, layer, chunk_bytes_, room_.layer, comm_, take, timer);
    walk.run(x_, original_x_, before);
    const int64_t needed = plan_.settings.min_tokens.value_or(
        std::max(model_.desc().hidden_size, model_.ffn(index).inner_size) / 2);
    sink.add(walk.coverage(), needed, walk.starved());
    if (refine.steps > 0) {
      timer.begin("refine");
      sink.add(
          refine_layer(original_, plan_, index, layer, solved, before, original_x_, refine, comm_));
      x_.copy_(before);
      sink.take(solved);
    }
    timer.end();
  }

  const Source& original_;
  const Model& model_;
  const Plan& plan_;
  Comm& comm_;
  const OwnWindows windows_;
  const at::TensorOptions options_;
  const uint64_t seed_;
  const int64_t chunk_bytes_;  // for experts that are solved together
  const SolveRoom room_;
  const StatesPlace place_;
  at::Tensor x_, original_x_;  // [windows, tokens, hidden] f32 before the next layer
};

/// The number of ranks that run on this machine.
int64_t ranks_here(Comm& comm) {
  std::array<char, HOST_NAME_MAX + 1> name{};
  ::gethostname(name.data(), HOST_NAME_MAX);
  const std::vector<std::string> all = comm.all_gather(name.data());
  return std::count(all.begin(), all.end(), name.data());
}

/// The memory for the experts of one chunk if the user sets no limit. A GPU solves many experts
/// together in less time, and each rank should have experts to solve in every chunk; but no more
/// than a quarter of the GPU's memory is taken for them. Processes on CPUs may share one memory.
int64_t usual_chunk_bytes(at::Device device) {
  constexpr int64_t kMinimum = int64_t{3} << 29, kMaximum = int64_t{32} << 30;
  if (device.is_cpu()) return kMinimum;
  return std::clamp(device_bytes(device) / 4, kMinimum, kMaximum);
}

}  // namespace

OwnWindows own_windows(const Plan& plan, const at::Tensor& windows, const Comm& comm) {
  const int64_t n = windows.size(0), ranks = comm.size(), rank = comm.rank();
  if (n < ranks)
    fail("{} cannot be dealt to {} processes; use more --nsamples, or fewer processes",
         counted(n, "calibration window"), ranks);
  OwnWindows own{comm.dealt(windows)};
  int64_t originals = original_windows(plan, n, windows.size(1));
  if (originals == 0) return own;
  originals = std::max(originals, ranks);  // one at least on each rank
  own.originals = (originals - rank + ranks - 1) / ranks;
  own.shift_scale = static_cast<double>(n) / static_cast<double>(originals);
  return own;
}

int64_t original_windows(const Plan& plan, int64_t windows, int64_t seqlen) {
  constexpr int64_t kMinTokens = 1 << 15;
  if (!plan.needs_calibration()) return 0;
  // a layer that rounds its inputs would also round those of the original model
  const bool rounds = std::any_of(plan.modules.begin(), plan.modules.end(),
                                  [](const PlannedModule& m) { return m.activations != nullptr; });
  if (rounds) return 0;
  if (std::any_of(plan.modules.begin(), plan.modules.end(),
                  [](const PlannedModule& m) { return m.refined(); }))
    return windows;  // learned rounding needs the original's output for all of them
  if (plan.settings.error_feedback == 0) return 0;
  // half of the windows show well enough how quantization changes the inputs, unless they are few
  return std::max((windows + 1) / 2, std::min(windows, (kMinTokens + seqlen - 1) / seqlen));
}

int32_t layers_with_states(const Model& model, const Plan& plan) {
  if (!plan.runs_model()) return 0;
  return has_head(plan) ? model.desc().n_layers : std::max(last_layer(model, plan), 0);
}

void set_memory(CalibratedRunOptions& options, const Source& original, const Model& model,
                const Plan& plan, const at::Tensor& windows, const MemoryLimit& limit) {
  const OwnWindows own = own_windows(plan, windows, *options.comm);
  options.states.device = options.device;
  int64_t bytes = 0;
  if (limit.bytes == 0 || limit.is_standard) bytes = usual_chunk_bytes(options.device);
  const int64_t sharers = options.device.is_cpu() ? 1 : ranks_here(*options.comm);
  if (limit.bytes != 0) {
    MemoryNeed need =
        memory_need(original, model, plan, own.ids.numel(), own.originals * windows.size(1),
                    options.dtype, options.device.is_cpu());
    if (!fits(need, limit.bytes)) {
      options.states.device = at::kCPU;
      if (options.device.is_cpu() || need.host > limit.host_bytes / sharers)
        options.states.folder = limit.folder;
      need = without_states(need);
    }
    const char* standard = options.device.is_cpu()
                               ? "what this container's memory limit leaves, in MB,"
                               : "what the GPU's memory has room for, in MB,";
    options.room =
        room_to_solve(need, limit.bytes, limit.is_standard ? standard : "--memory-limit");
    const int64_t room = options.room.layer;
    bytes = limit.is_standard ? std::min(room, bytes) : room;
    if (!options.device.is_cpu()) options.room.head = 0;  // the CPU solves it
  }
  at::Tensor least = at::tensor({-bytes}, at::kLong);
  options.comm->maximum(least);
  options.chunk_bytes = -least.item<int64_t>();
}

void run_calibrated(const Source& original, const Model& model, const Plan& plan,
                    const at::Tensor& windows, const CalibratedRunOptions& options,
                    BoundaryStates states, UnitSink& sink, PhaseTimer& timer) {
  Calibrator(original, model, plan, windows, options).run(std::move(states), sink, timer);
}

}  // namespace aqhost
