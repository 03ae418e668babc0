#pragma once

#include <string>

#include "base/observer.h"

namespace aqhost {

/// Keeps all messages of a run.
class KeptMessages : public RunObserver {
 public:
  void warn(const std::string& message) override { heard += "warning: " + message + "\n"; }
  void inform(const std::string& message) override { heard += message + "\n"; }

  std::string heard;
};

}  // namespace aqhost
