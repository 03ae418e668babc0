#include "tensor/kernels.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "tensor/device.h"

namespace aqhost {
namespace {
namespace dll = boost::dll;

GpuKernels open_kernels() {
  const std::filesystem::path file = gpu_module();
  GpuKernels kernels;
  try {
    kernels.library.load(file.string(), dll::load_mode::rtld_now | dll::load_mode::rtld_local);
    const auto find = [&](auto*& function, const char* name) {
      function = &kernels.library.get<std::remove_reference_t<decltype(*function)>>(name);
    };
    find(kernels.fit, "aq_cuda_fit");
    find(kernels.round, "aq_cuda_round");
    find(kernels.solve, "aq_cuda_solve");
    find(kernels.refit, "aq_cuda_refit");
    find(kernels.sweep, "aq_cuda_sweep");
    find(kernels.invert_factor, "aq_cuda_invert_factor");
    find(kernels.permute, "aq_cuda_permute");
    find(kernels.rms_norm, "aq_cuda_rms_norm");
    find(kernels.rotate, "aq_cuda_rotate");
    find(kernels.silu_times, "aq_cuda_silu_times");
    find(kernels.add_rows, "aq_cuda_add_rows");
    find(kernels.scale_rows, "aq_cuda_scale_rows");
  } catch (const std::exception& e) {
    fail("{}: the GPU module does not load ({}); use --device cpu, or build with a CUDA toolkit",
         file.string(), e.what());
  }
  return kernels;
}

}  // namespace

const GpuKernels& gpu_kernels() {
  static const GpuKernels opened = open_kernels();
  return opened;
}

void* stream_of(const at::Tensor& tensor) {
  return c10::impl::VirtualGuardImpl(tensor.device().type())
      .getStream(tensor.device())
      .native_handle();
}

}  // namespace aqhost
