#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "run/calibration.h"

namespace aqhost {

class Comm;

/// What a work folder records of its run: `identity` (see run_identity()), and the options that the
/// calibration windows were made with. The options identify nothing, since other options may lead
/// to the same windows; they explain in which option two runs differ.
Json run_manifest(Json identity, const std::optional<CalibrationOptions>& calibration);

/// The words with which run_differences() tells two runs apart.
struct DifferenceWords {
  std::string before = "before", now = "now";
  std::string added = "new", missing = "missing now", changed = "changed";
};

/// What differs between two runs, given their manifests: each difference names the option that the
/// user gave, and both values where they are short, as "--seqlen: 256 before, 512 now" or
/// "config.json (--model): changed". Differences of the whole run come first, those of modules
/// last. Empty if the identities are equal.
std::vector<std::string> run_differences(const Json& before, const Json& now,
                                         const DifferenceWords& words = {});

/// Throws an Error if another rank was started for another run than rank 0, given the manifest of
/// this rank's. Collective (see Comm).
void require_same_run(const Json& manifest, Comm& comm);
/// Throws the Error that says how the start of `rank` differs from that of rank 0, if it does.
void require_no_differences(std::size_t rank, const std::vector<std::string>& differences);

/// The differences as one text: the first eight, and how many more there are.
std::string listed(std::vector<std::string> differences);

}  // namespace aqhost
