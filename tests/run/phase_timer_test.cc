#include "run/phase_timer.h"

#include "other_device.h"
#include "tensor/device.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

constexpr int64_t kMega = int64_t{1} << 20;

/// A tensor of `megabytes` on the device of the tests.
at::Tensor held(int64_t megabytes) {
  return at::empty({megabytes * kMega}, at::TensorOptions(at::kByte).device(kOtherDevice));
}

/// Whether `bytes` are those of as many megabytes, but for what the allocator rounds up.
bool about(int64_t bytes, int64_t megabytes) { return bytes / (kMega / 2) == 2 * megabytes; }

TEST_CASE("the peak of a device's memory is known of each phase, and of the whole run") {
  held(128);
  CHECK(take_peak_device_bytes(kOtherDevice) >= 128 * kMega);  // of the tests before this one, too
  PhaseTimer timer(kOtherDevice);
  timer.begin("read");
  const at::Tensor kept = held(8);
  timer.begin("solve");
  held(16);  // and freed
  timer.begin("read");
  timer.end();
  held(64);  // between two phases
  timer.begin("write");
  timer.end();
  const PhaseBytes& phases = timer.device_memory();
  CHECK(phases.size() == 3);
  CHECK(about(phases.at("read"), 8));
  CHECK(about(phases.at("solve"), 24));
  CHECK(about(phases.at("write"), 8));
  CHECK(about(timer.peak_device_bytes().value(), 72));
}

TEST_CASE("a run on the CPU has no memory of a device") {
  PhaseTimer timer;
  timer.begin("solve");
  timer.end();
  CHECK(timer.memory().at("solve") > 0);
  CHECK(timer.device_memory().empty());
  CHECK(!timer.peak_device_bytes());
}

}  // namespace
}  // namespace aqhost
