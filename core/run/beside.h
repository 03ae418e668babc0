#pragma once

#include <c10/core/Device.h>

namespace aqhost {

/// Whether the host reads the next layer and hands over solutions in another thread while `device`
/// computes. This is so for a GPU; under ThreadSanitizer also for the CPU, so that these threads
/// are checked on machines without a GPU.
inline bool works_beside([[maybe_unused]] c10::Device device) {
#ifdef __SANITIZE_THREAD__
  return true;
#else
  return !device.is_cpu();
#endif
}

}  // namespace aqhost
