#include "ranks.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>

#include "base/error.h"
#include "base/interrupt.h"
#include "run/quantize.h"
#include "run/world.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

at::Device open_device_of(const World& world, const std::string& name) {
  const at::Device device = open_device(name);
  if (device.is_cpu() || (name != "auto" && name != "cuda")) return device;
  return open_device(fmt::format("cuda:{}", world.local_rank));
}

/// Does what must be done before this rank joins the others. If that fails, they are told.
template <typename Body>
auto before_joining(const World& world, const Body& body) {
  try {
    return body();
  } catch (const UsageError& e) {
    Comm::report_failure(world, e.what());
    throw;
  } catch (const Error& e) {
    Comm::report_failure(world, e.what());
    fail("rank {}: {}", world.rank, e.what());
  } catch (const std::exception& e) {  // of LibTorch
    Comm::report_failure(world, e.what());
    throw;
  }
}

}  // namespace

void run_as_rank(const DeviceOptions& options,
                 const std::function<void(Comm& comm, std::optional<at::Device> device)>& body) {
  const World world = world_of_environment();
  if (world.size == 1) return body(*Comm::alone(), {});
  const auto level = spdlog::get_level();
  const auto own_level = world.rank == 0 ? level : std::max(level, spdlog::level::err);
  spdlog::set_level(own_level);
  const CommTimes times = before_joining(world, CommTimes::of_environment);
  const at::Device device =
      before_joining(world, [&] { return open_device_of(world, options.name); });
  spdlog::set_level(level);  // each rank may say that it waits for others
  const std::unique_ptr<Comm> comm =
      Comm::join(world, device, times, [](const std::string& text) { spdlog::info("{}", text); });
  spdlog::set_level(own_level);
  try {
    body(*comm, device);
    comm->end();
  } catch (const RunInterrupted&) {
    comm->fail_with("a signal interrupted it");
    throw;
  } catch (const Interrupted&) {
    comm->fail_with("a signal interrupted it");
    throw;
  } catch (const Error& e) {
    comm->fail_with(e.what());
    fail("rank {}: {}", world.rank, e.what());
  } catch (const std::exception& e) {
    comm->fail_with(e.what());
    throw;
  }
}

}  // namespace aqhost
