#include "ranks.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

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

}  // namespace

void run_as_rank(const DeviceOptions& options,
                 const std::function<void(Comm& comm, std::optional<at::Device> device)>& body) {
  const World world = world_of_environment();
  if (world.size == 1) return body(*Comm::alone(), {});
  if (world.rank != 0 && spdlog::get_level() < spdlog::level::err)
    spdlog::set_level(spdlog::level::err);
  const at::Device device = open_device_of(world, options.name);
  const std::unique_ptr<Comm> comm = Comm::join(world, device);
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
