#pragma once

#include "plugin/registry.h"

namespace aqhost {

/// The one registry of these tests: the plugins of the project, and those of tests/export.
inline const Registry& all_plugins() {
  static const Registry registry({AQ_BUILD_DIR "/plugins", AQ_BUILD_DIR "/tests/plugins-export"});
  return registry;
}

}  // namespace aqhost
