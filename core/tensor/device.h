#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace aqhost {

/// The device named "cpu", "cuda", "cuda:1", or "auto": a GPU if there is one that can be used,
/// else the CPU (with a warning if there is a GPU). This program is not linked to CUDA; LibTorch's
/// CUDA libraries are opened here, the first time a GPU is asked for, so call it before any tensor
/// is made. Error says what is missing; UsageError for another name.
at::Device open_device(const std::string& name);

/// The GPU module, aqhost_cuda.so, in the program's folder or in ../lib/aqhost; empty: in neither.
std::filesystem::path gpu_module();

/// Whether open_device() knows `name`; UsageError if not. Opens nothing.
void check_device_name(const std::string& name);

/// Waits for all work enqueued on `device`; nothing on the CPU.
void synchronize(at::Device device);

/// Runs `body` with a queue of its own, so that its copies go on beside the work of other threads,
/// and returns when they are done; on the CPU just runs it. Tensors it leaves behind may be freed
/// only after synchronize().
void on_own_queue(at::Device device, const std::function<void()>& body);

/// Most bytes of tensors at once since the start; 0 on the CPU.
int64_t peak_device_bytes(at::Device device);

}  // namespace aqhost
