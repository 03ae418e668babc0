#pragma once

#include <c10/core/Device.h>

namespace aqhost {

/// Whether the host's own work for `device` (reading the next layer, handing over what was solved)
/// goes on in a thread beside it: for a GPU. Under ThreadSanitizer for the CPU too, so that these
/// threads are checked where there is no GPU.
inline bool works_beside([[maybe_unused]] c10::Device device) {
#ifdef __SANITIZE_THREAD__
  return true;
#else
  return !device.is_cpu();
#endif
}

}  // namespace aqhost
