#include "tensor/device.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <boost/dll/runtime_symbol_info.hpp>
#include <boost/dll/shared_library.hpp>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace aqhost {
namespace {
namespace dll = boost::dll;
namespace fs = std::filesystem;

using Guard = c10::impl::VirtualGuardImpl;

/// Returns "" if there is a GPU, or else why there is none. Does not ask LibTorch, because opening
/// its CUDA libraries takes seconds.
std::string missing_driver() {
  dll::shared_library driver;
  boost::dll::fs::error_code error;
  driver.load("libcuda.so.1", error,
              dll::load_mode::rtld_now | dll::load_mode::search_system_folders);
  if (!driver.is_loaded()) return "there is no NVIDIA driver (libcuda.so.1)";
  int count = 0;
  if (driver.get<int(unsigned)>("cuInit")(0) != 0 ||
      driver.get<int(int*)>("cuDeviceGetCount")(&count) != 0 || count == 0)
    return "the NVIDIA driver finds no GPU";
  return {};
}

/// Opens LibTorch's CUDA libraries for the rest of the process; returns "" or what is missing.
std::string open_cuda() {
  if (gpu_module().empty())
    return "there is no aqhost_cuda.so beside the program: build it with a CUDA toolkit (nvcc)";
  // Segments that can grow: with fixed ones, unused fragments take as much memory as the tensors.
  ::setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True", 0);
  try {
    static const dll::shared_library torch("libtorch_cuda.so",
                                           dll::load_mode::rtld_now | dll::load_mode::rtld_global |
                                               dll::load_mode::search_system_folders);
  } catch (const std::exception& e) {
    return fmt::format(
        "LibTorch's CUDA libraries do not load ({}): run aqhost-fetch-libtorch --cuda, or let "
        "LD_LIBRARY_PATH name the torch/lib folder of tools/fetch_libtorch --cuda or of PyTorch {}",
        e.what(), "2.11");
  }
  if (!at::globalContext().hasCUDA()) return "LibTorch finds no GPU that it can use";
  return {};
}

/// The GPU's number in a name other than "cpu"; 0 if the name has no number.
int parse_index(const std::string& name) {
  int index = 0;
  const bool numbered = name.starts_with("cuda:");
  if (numbered) {
    const char* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + 5, end, index);
    if (error != std::errc() || stop != end || index < 0)
      throw UsageError(fmt::format("--device \"{}\": expected a GPU's number after cuda:", name));
  } else if (name != "auto" && name != "cuda") {
    throw UsageError(fmt::format("--device \"{}\": expected auto, cpu, cuda or cuda:NUMBER", name));
  }
  return index;
}

void set_products(at::Float32Precision precision) {
  at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL,
                                          precision);
}

}  // namespace

void check_device_name(const std::string& name) {
  if (name != "cpu") parse_index(name);
}

at::Device open_device(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  const int index = parse_index(name);
  const std::string no_driver = missing_driver();
  const std::string missing = no_driver.empty() ? open_cuda() : no_driver;
  if (!missing.empty()) {
    if (name != "auto") fail("--device {}: {}; use --device cpu or auto", name, missing);
    if (no_driver.empty()) spdlog::warn("the GPU is not used: {}", missing);
    return at::kCPU;
  }
  const int count = Guard(at::kCUDA).deviceCount();
  if (index >= count) fail("--device {}: there are {} GPUs, counted from 0", name, count);
  const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(index));
  at::globalContext().lazyInitDevice(at::kCUDA);
  Guard(at::kCUDA).setDevice(device);
  return device;
}

std::string gpu_name(const std::string& name) {
  if (name == "cpu") return {};
  const int index = parse_index(name);
  if (gpu_module().empty() || !missing_driver().empty()) return {};
  const dll::shared_library driver(
      "libcuda.so.1", dll::load_mode::rtld_now | dll::load_mode::search_system_folders);
  std::array<char, 256> text{};
  int device = 0;
  if (driver.get<int(unsigned)>("cuInit")(0) != 0 ||
      driver.get<int(int*, int)>("cuDeviceGet")(&device, index) != 0 ||
      driver.get<int(char*, int, int)>("cuDeviceGetName")(text.data(), text.size() - 1, device) !=
          0)
    return {};
  return text.data();
}

fs::path gpu_module() {
  const fs::path bin = fs::path(dll::program_location().string()).parent_path();
  for (const char* folder : {".", "../lib/aqhost"})
    if (fs::path file = bin / folder / "aqhost_cuda.so"; fs::exists(file)) return file;
  return {};
}

void synchronize(at::Device device) {
  if (!device.is_cpu()) Guard(device.type()).synchronizeDevice(device.index());
}

void on_own_queue(at::Device device, const std::function<void()>& body) {
  if (device.is_cpu()) return body();
  const Guard guard(device.type());
  guard.setDevice(device);
  const c10::Stream own = guard.getStreamFromGlobalPool(device);
  struct Restore {  // restores it also if body() throws
    const Guard& guard;
    c10::Stream before;
    ~Restore() { guard.exchangeStream(before); }
  } const restore{guard, guard.exchangeStream(own)};
  body();
  guard.synchronizeStream(own);
}

void copy_to_host(const at::Tensor& tensor, int64_t begin, std::span<std::byte> out) {
  const auto size = static_cast<int64_t>(out.size());
  const at::Tensor part = tensor.view({-1}).view(at::kByte).narrow(0, begin, size);
  const at::Tensor pinned = at::empty({size}, at::TensorOptions(at::kByte).pinned_memory(true));
  on_own_queue(tensor.device(), [&] { pinned.copy_(part, /*non_blocking=*/true); });
  std::memcpy(out.data(), pinned.const_data_ptr(), out.size());
}

at::Tensor moved_to(const at::Tensor& t, at::Device device) {
  if (t.is_cuda() == device.is_cuda()) return t.to(device);
  const at::Tensor locked =
      at::empty(t.sizes(), t.options().device(at::kCPU).pinned_memory(true)).copy_(t);
  return locked.to(device, /*non_blocking=*/true);
}

int64_t free_device_bytes(at::Device device) {
  return static_cast<int64_t>(
      c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first);
}

int64_t device_bytes(at::Device device) {
  return static_cast<int64_t>(
      c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).second);
}

Tf32Products::Tf32Products(at::Device device) : used_(!device.is_cpu()) {
  if (used_) set_products(at::Float32Precision::TF32);
}

Tf32Products::~Tf32Products() {
  if (used_) set_products(at::Float32Precision::IEEE);
}

int64_t take_peak_device_bytes(at::Device device) {
  if (device.is_cpu()) return 0;
  c10::DeviceAllocator& memory = *c10::getDeviceAllocator(device.type());
  const int64_t peak = memory.getDeviceStats(device.index()).allocated_bytes[0].peak;
  memory.resetPeakStats(device.index());
  return peak;
}

}  // namespace aqhost
