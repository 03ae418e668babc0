#pragma once

#include <optional>
#include <string>

#include "base/observer.h"
#include "base/progress.h"

namespace aqhost {

/// Shows the messages of a run in the log, and its progress on stderr as Progress does.
class ConsoleObserver : public RunObserver {
 public:
  /// With `quiet`, it shows no progress.
  explicit ConsoleObserver(bool quiet) : quiet_(quiet) {}

  void warn(const std::string& message) override;
  void inform(const std::string& message) override;
  void begin(const std::string& title, double total, const std::string& unit) override;
  void resume(double done) override;
  void expect(double seconds) override;
  void update(double done, const std::string& detail) override;
  void end() override;

 private:
  const bool quiet_;
  std::optional<Progress> progress_;
};

}  // namespace aqhost
