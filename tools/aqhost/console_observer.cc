#include "console_observer.h"

#include <spdlog/spdlog.h>

namespace aqhost {

void ConsoleObserver::warn(const std::string& message) { spdlog::warn("{}", message); }

void ConsoleObserver::inform(const std::string& message) { spdlog::info("{}", message); }

void ConsoleObserver::begin(const std::string& title, double total, const std::string& unit) {
  progress_.emplace(title, total, unit, quiet_);
}

void ConsoleObserver::resume(double done) {
  if (progress_) progress_->resume(done);
}

void ConsoleObserver::expect(double seconds) {
  if (progress_) progress_->expect(seconds);
}

void ConsoleObserver::update(double done, const std::string& detail) {
  if (progress_) progress_->update(done, detail);
}

void ConsoleObserver::end() { progress_.reset(); }

}  // namespace aqhost
