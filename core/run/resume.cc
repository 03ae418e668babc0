#include "run/resume.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/interrupt.h"

namespace aqhost {
namespace {

[[noreturn]] void end_interrupted(const std::string& kept) {
  if (kept.empty()) throw Interrupted();
  throw RunInterrupted("interrupted: " + kept);
}

}  // namespace

std::string kept_text(const std::string& finished, int32_t count, const std::string& folder) {
  return fmt::format("{} {} kept in {}; run the same command again to go on after {}", finished,
                     count == 1 ? "is" : "are", folder, count == 1 ? "it" : "them");
}

void end_early(const Comm& comm, const std::function<std::string()>& keep) {
  try {
    throw;
  } catch (const Interrupted&) {
    end_interrupted(keep());
  } catch (const Error& e) {
    // A signal that stops all ranks may stop another one first, which then removes files of the
    // run. What fails here because of that is no failure of the run.
    if (comm.size() > 1 && interrupt_signal() != 0) end_interrupted(keep());
    const std::string kept = keep();
    if (kept.empty()) throw;
    fail("{}. {}", e.what(), kept);
  }
}

}  // namespace aqhost
