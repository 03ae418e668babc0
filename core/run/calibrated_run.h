#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "run/comm.h"
#include "run/memory_need.h"
#include "run/phase_timer.h"
#include "run/store.h"
#include "run/unit_sink.h"

namespace aqhost {

/// The number of layers, from the first on, whose output is needed to solve a later layer or
/// lm_head; 0 if the model is not run.
int32_t layers_with_states(const Model& model, const Plan& plan);

/// How many of a run's windows (of seqlen tokens) also run through the original model.
int64_t original_windows(const Plan& plan, int64_t windows, int64_t seqlen);

/// The calibration windows of one rank.
struct OwnWindows {
  at::Tensor ids;          // [windows, tokens] i64
  int64_t originals = 0;   // how many of them, from the first on, also run through the original
  double shift_scale = 1;  // all windows / the windows that run through the original, of all ranks
};

/// Deals windows [n, tokens] to the ranks in turn, so that each receives some of text and some of
/// random tokens, and its part of those that run through the original model. Throws an Error if
/// there are more ranks than windows.
OwnWindows own_windows(const Plan& plan, const at::Tensor& windows, const Comm& comm);

struct CalibratedRunOptions {
  at::ScalarType dtype = at::kFloat;  // in which layers compute
  at::Device device = at::kCPU;
  uint64_t seed = 0;     // of learned rounding
  Comm* comm = nullptr;  // the ranks of the run; not null
  // see set_memory()
  int64_t chunk_bytes = 0;  // for the experts that are solved together
  SolveRoom room{};
  StatesPlace states{};
};

struct MemoryLimit {
  int64_t bytes = 0;             // 0: there is none
  bool is_standard = false;      // and not --memory-limit: it need not be used up
  std::filesystem::path folder;  // for hidden states that do not fit
  int64_t host_bytes = 0;        // in a run on a GPU: what the host's memory has room for
};

/// Sets the memory for solving in a run of windows [n, tokens]: options.room on this rank, and
/// options.chunk_bytes as on the rank that has the least. Also sets options.states: to the device,
/// if the limit leaves room for the hidden states there; else to the host's memory, if the device
/// is a GPU and that memory has room; else to the limit's folder. Throws an Error if the limit is
/// less than the run needs even so, or if there are more ranks than windows.
void set_memory(CalibratedRunOptions& options, const Source& original, const Model& model,
                const Plan& plan, const at::Tensor& windows, const MemoryLimit& limit);

/// Runs windows [n, tokens] i64, which are dealt to the ranks, through the layers from sink.next()
/// on, and solves each layer's planned modules on the way. `states` are those of this rank behind
/// the last finished layer; they are undefined if there is none.
void run_calibrated(const Source& original, const Model& model, const Plan& plan,
                    const at::Tensor& windows, const CalibratedRunOptions& options,
                    BoundaryStates states, UnitSink& sink, PhaseTimer& timer);

}  // namespace aqhost
