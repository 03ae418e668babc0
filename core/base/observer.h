#pragma once

#include <cstddef>
#include <string>

namespace aqhost {

/// Receives the messages and the progress of a run; the run itself neither logs nor draws. The
/// thread that runs calls these functions. Functions that do nothing here need not be overridden.
class RunObserver {
 public:
  virtual ~RunObserver() = default;

  /// Reports something because of which the result may not be what the user expects.
  virtual void warn(const std::string& /*message*/) {}
  /// Reports something that is useful to know.
  virtual void inform(const std::string& /*message*/) {}

  /// A piece of work begins. It has `total` units of the kind `unit` ("layers", "weights").
  virtual void begin(const std::string& /*title*/, double /*total*/, const std::string& /*unit*/) {}
  /// `done` units of this piece of work were finished before it began.
  virtual void resume(double /*done*/) {}
  /// The piece of work will take this many seconds from now on. Without this, an observer may
  /// conclude that from the updates.
  virtual void expect(double /*seconds*/) {}
  /// `done` units are finished so far; `detail` says what is being worked on.
  virtual void update(double /*done*/, const std::string& /*detail*/) {}
  /// The piece of work has ended.
  virtual void end() {}
};

}  // namespace aqhost
