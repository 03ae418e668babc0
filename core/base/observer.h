#pragma once

#include <cstddef>
#include <string>

namespace aqhost {

/// What a run tells whoever started it; it neither logs nor draws itself. The functions
/// are called by the thread that runs; those that do nothing here need not be overridden.
class RunObserver {
 public:
  virtual ~RunObserver() = default;

  /// Something that the user should know of: the result may not be what they expect.
  virtual void warn(const std::string& /*message*/) {}
  /// Something that is good to know.
  virtual void inform(const std::string& /*message*/) {}

  /// A piece of work begins, of `total` units ("layers", "weights").
  virtual void begin(const std::string& /*title*/, double /*total*/, const std::string& /*unit*/) {}
  /// `done` units are finished in all; `detail` says what is being worked on.
  virtual void update(double /*done*/, const std::string& /*detail*/) {}
  /// The piece of work has ended.
  virtual void end() {}
};

}  // namespace aqhost
