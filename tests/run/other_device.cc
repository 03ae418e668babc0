#include "other_device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <malloc.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/error.h"

namespace aqhost {
namespace {

class HostMemory : public c10::DeviceAllocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(bytes);
    const std::lock_guard lock(mutex_);
    held_.increase(::malloc_usable_size(data));
    return {data, data, &free, kOtherDevice};
  }
  at::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t /*pool*/) override {}
  void recordStream(const at::DataPtr& /*data*/, c10::Stream /*stream*/) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex /*index*/) override {
    const std::lock_guard lock(mutex_);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0] = held_;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex /*index*/) override {}
  void resetPeakStats(c10::DeviceIndex /*index*/) override {
    const std::lock_guard lock(mutex_);
    held_.reset_peak();
  }

 private:
  static void free(void* data);

  std::mutex mutex_;
  c10::CachingAllocator::Stat held_;
};

HostMemory memory;

void HostMemory::free(void* data) {
  {
    const std::lock_guard lock(memory.mutex_);
    memory.held_.decrease(::malloc_usable_size(data));
  }
  std::free(data);
}

REGISTER_ALLOCATOR(c10::kPrivateUse1, &memory)

const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type,
                 std::optional<at::Layout> /*layout*/, std::optional<at::Device> /*device*/,
                 std::optional<bool> /*pinned*/, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, type.value_or(at::kFloat), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> type, std::optional<at::Layout> /*layout*/,
                         std::optional<at::Device> /*device*/, std::optional<bool> /*pinned*/) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, type.value_or(at::kFloat));
}

/// The same memory as a tensor on the CPU.
at::Tensor on_cpu(const at::Tensor& t) {
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU));
}

at::Tensor copy_between(const at::Tensor& from, const at::Tensor& to, bool /*non_blocking*/) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_result(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) fail("an operation has changed the shape of its argument");
  return copy_between(from, to, false);
}

/// Has the CPU do an operation whose tensors, except single numbers, are all on this device.
void compute(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto check = [&](const at::Tensor& t) {
    if (t.defined() && t.dim() > 0 && t.device() != kOtherDevice)
      fail("{} has tensors of several devices", operation.schema().name());
  };
  for (const c10::IValue& argument :
       torch::jit::last(*stack, operation.schema().arguments().size())) {
    if (argument.isTensor()) check(argument.toTensor());
    if (argument.isTensorList())
      for (const at::Tensor& t : argument.toTensorVector()) check(t);
  }
  at::native::cpu_fallback(operation, stack, /*error_on_views=*/true);
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::NoOpDeviceGuardImpl<at::kPrivateUse1>);

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("_copy_from", &copy_between);
  library.impl("_copy_from_and_resize", &copy_result);
}

}  // namespace
}  // namespace aqhost
