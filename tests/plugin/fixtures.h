#pragma once

#include <filesystem>

namespace aqhost {

/// The folder with the folders of plugins that do wrong.
inline const std::filesystem::path kFixtures = std::filesystem::path(AQ_BUILD_DIR) / "tests";

}  // namespace aqhost
