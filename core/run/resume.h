#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "run/comm.h"

namespace aqhost {

/// What a run does with the finished units of an earlier run to the same target.
enum class Resume : uint8_t {
  kAuto,      // it goes on after them, if there are any
  kNever,     // it removes them and begins anew
  kRequired,  // it goes on after them, and fails if there are none
};

/// Thrown when a signal stops a run. what() says what is kept, and how to go on.
class RunInterrupted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The sentence that says where `count` finished units ("2 layers") are kept, and how to go on.
std::string kept_text(const std::string& finished, int32_t count, const std::string& folder);

/// Ends a run in the catch clause of an Error or of Interrupted. `keep` keeps what is finished and
/// returns kept_text(), or "" if nothing is. After a signal, this throws RunInterrupted if
/// something is kept, and Interrupted otherwise; after an Error, that Error, with what is kept.
[[noreturn]] void end_early(const Comm& comm, const std::function<std::string()>& keep);

}  // namespace aqhost
