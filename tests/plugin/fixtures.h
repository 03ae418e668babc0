#pragma once

#include <aq/abi.h>
#include <fmt/format.h>

#include <filesystem>
#include <string>

namespace aqhost {

/// The folder with the folders of plugins that do wrong.
inline const std::filesystem::path kFixtures = std::filesystem::path(AQ_BUILD_DIR) / "tests";

/// The ABI version of the fixtures of another major: "2.1".
inline const std::string kOtherAbi = fmt::format("{}.{}", AQ_ABI_MAJOR + 1, AQ_ABI_MINOR);

}  // namespace aqhost
