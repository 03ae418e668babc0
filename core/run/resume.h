#pragma once

#include <cstdint>

namespace aqhost {

/// What a run does with the finished units of an earlier run to the same target.
enum class Resume : uint8_t {
  kAuto,      // it goes on after them, if there are any
  kNever,     // it removes them and begins anew
  kRequired,  // it goes on after them, and fails if there are none
};

}  // namespace aqhost
