#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"

namespace aqhost {

/// The operations per second that the matrix products of a device reach, by the type in which they
/// compute.
struct MachineRates {
  std::string device;  // "NVIDIA H200", "the CPU"
  bool cpu = true;
  bool measured = true;  // by short products just now; otherwise they are known of this kind of GPU
  double bfloat16 = 0, tf32 = 0, float32 = 0, float64 = 0;
};

/// The rates of the device that open_device() opens by `name`. If they are not known, they are
/// measured, which takes less than a second, on a GPU after LibTorch's CUDA libraries have been
/// opened.
MachineRates machine_rates(const std::string& name);

/// What one process needs for a run.
struct RunEstimate {
  double least_seconds = 0, most_seconds = 0;
  // the memory of the device; 0 if the model is not run
  int64_t memory_bytes = 0;
  int64_t least_memory_bytes = 0;  // if the hidden states are held elsewhere
};

/// Predicts a run over `windows` windows of `seqlen` tokens on a machine with these rates. The
/// seconds are those of the floor, the operations of each layer divided by the rates (see
/// tools/bench/floor), times what runs have taken in relation to it (see tools/bench/README.md);
/// a layer takes at least the time for its files, which are assumed to be in the page cache.
/// Learned rounding is not counted.
RunEstimate estimate_run(const Source& source, const Model& model, const Plan& plan,
                         int64_t windows, int64_t seqlen, const MachineRates& rates);

}  // namespace aqhost
