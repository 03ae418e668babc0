#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

namespace aqhost {

/// Opens the device named "cpu", "cuda", "cuda:1" or "auto", which is a usable GPU if there is one,
/// and otherwise the CPU (with a warning if there is a GPU that is not usable). This program is not
/// linked to CUDA: the first call for a GPU opens LibTorch's CUDA libraries, so it must come before
/// any tensor is made. An Error says what is missing; another name is a UsageError.
at::Device open_device(const std::string& name);

/// The path of the GPU module, aqhost_cuda.so, in the program's folder or in ../lib/aqhost; empty
/// if it is in neither.
std::filesystem::path gpu_module();

/// Throws a UsageError if open_device() does not know `name`. Opens nothing.
void check_device_name(const std::string& name);

/// The name of the GPU that open_device() opens by `name`, such as "NVIDIA H200"; empty if that is
/// the CPU, or if the driver does not say. Does not open LibTorch's CUDA libraries. Another name is
/// a UsageError.
std::string gpu_name(const std::string& name);

/// Waits for all work enqueued on `device`. Does nothing on the CPU.
void synchronize(at::Device device);

/// Runs `body` with a stream of its own, so that its copies run in parallel with the work of other
/// threads, and returns when they are done. On the CPU, just runs it. Tensors that `body` leaves
/// behind may be freed only after synchronize().
void on_own_queue(at::Device device, const std::function<void()>& body);

/// Copies bytes [begin, begin + out.size()) of a contiguous tensor on a GPU to `out`. Goes through
/// page-locked memory of the size of `out` and a queue of its own, so that the GPU's other work
/// goes on; so the tensor must have its values already.
void copy_to_host(const at::Tensor& tensor, int64_t begin, std::span<std::byte> out);

/// `t` on `device`: `t` itself if it is there. Between the host and a GPU, it is copied through
/// page-locked memory, which is several times as fast; what is copied to the host has its values
/// when this returns.
at::Tensor moved_to(const at::Tensor& t, at::Device device);

/// The bytes of memory that a GPU has, and those of them that are free.
int64_t device_bytes(at::Device device);
int64_t free_device_bytes(at::Device device);

/// While it lives, float32 matrix products on a GPU may round their factors to TF32 (11 significant
/// bits) and add in float32, which is eight times as fast. Does nothing for the CPU. Only one may
/// exist at a time, because the setting applies to all threads.
class Tf32Products {
 public:
  explicit Tf32Products(at::Device device);
  ~Tf32Products();
  Tf32Products(const Tf32Products&) = delete;
  Tf32Products& operator=(const Tf32Products&) = delete;

 private:
  const bool used_;
};

/// The maximum of tensor bytes that were held at once on a GPU since the last call, or since the
/// start of the program before the first call; 0 on the CPU.
int64_t take_peak_device_bytes(at::Device device);

}  // namespace aqhost
