#include "run/run_difference.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <functional>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/work_folder.h"
#include "run/comm.h"
#include "run/unit_record.h"

namespace aqhost {
namespace {

constexpr const char* kOptions = "options";
constexpr const char* kCalibration = "calibration";

struct Difference {
  std::string field;  // its path, as "settings.percdamp"
  Json before, now;   // null if it is missing
};

/// Appends every value in which two objects differ, at any depth. A missing object has no fields.
void compare(const Json& before, const Json& now, const std::string& field,
             std::vector<Difference>& found) {
  if (before == now) return;
  const auto may_have_fields = [](const Json& json) { return json.is_object() || json.is_null(); };
  if (!may_have_fields(before) || !may_have_fields(now)) {
    found.push_back({field, before, now});
    return;
  }
  std::set<std::string> keys;
  for (const Json* object : {&before, &now})
    for (const auto& [key, value] : object->items()) keys.insert(key);
  const auto value_of = [](const Json& object, const std::string& key) {
    return object.is_null() ? Json() : object.value(key, Json());
  };
  for (const std::string& key : keys)
    compare(value_of(before, key), value_of(now, key), field.empty() ? key : field + "." + key,
            found);
}

std::vector<Difference> compare(const Json& before, const Json& now) {
  std::vector<Difference> found;
  compare(before, now, "", found);
  return found;
}

/// The manifest of a run of one process does not say so.
Json with_ranks(Json manifest) {
  if (manifest.is_object()) manifest.emplace("ranks", 1);
  return manifest;
}

/// A field of the identity, or all fields of an object in it, and how a message calls it. "{}"
/// stands for the rest of the field's path.
struct Name {
  std::string_view field, text;
};

constexpr std::array kNames{Name{"version", "the version of aqhost"},
                            Name{"abi", "the plugin ABI of aqhost"},
                            Name{"layers", "the number of layers (--model)"},
                            Name{"source.", "{} (--model)"},
                            Name{"container", "--export"},
                            Name{"max_shard_bytes", "--max-shard-size, in bytes"},
                            Name{"dtype", "--dtype"},
                            Name{"device", "--device"},
                            Name{"ranks", "the number of processes"},
                            Name{"score", "--score"},
                            Name{"text_ids", "the windows of text for the score"},
                            Name{"candidates.", "the candidate {} (--candidates or --config)"},
                            Name{"parts", "the parts (--target or --config)"},
                            Name{"plugins.", "the plugin {} (--plugin-dir)"},
                            Name{"settings.", "{} (--config)"},
                            Name{"plan.", "{} (--config or --algorithm)"}};

std::string name_of(const std::string& field) {
  for (const auto& [prefix, text] : kNames) {
    if (!field.starts_with(prefix)) continue;
    return fmt::format(fmt::runtime(text), field.substr(prefix.size()));
  }
  return field;
}

std::string value_text(const Json& value) {
  if (value.is_null()) return "nothing";
  return value.is_string() ? value.get<std::string>() : to_text(value);
}

std::string text_of(const std::string& name, const Difference& difference,
                    const DifferenceWords& words) {
  constexpr std::size_t kShort = 60;  // a SHA-256 has 64 digits
  const std::string before = value_text(difference.before), now = value_text(difference.now);
  if (before.size() <= kShort && now.size() <= kShort)
    return fmt::format("{}: {} {}, {} {}", name, before, words.before, now, words.now);
  return fmt::format("{}: {}", name,
                     difference.before.is_null() ? words.added
                     : difference.now.is_null()  ? words.missing
                                                 : words.changed);
}

/// How run_differences() calls the runs of rank 0 and of another rank.
DifferenceWords words_of(int rank) {
  const std::string other = fmt::format("on rank {}", rank);
  return {"on rank 0", other, "only " + other, "only on rank 0", "not the same"};
}

}  // namespace

Json run_manifest(Json identity, const std::optional<CalibrationOptions>& calibration) {
  if (!calibration) return identity;
  std::string files;
  for (const CorpusFile& file : calibration->files)
    files += fmt::format("{}{}{}", files.empty() ? "" : ", ", file.path.string(),
                         file.weight == 1 ? "" : fmt::format("={}", file.weight));
  identity[kOptions] = {{"--calib", files},
                        {"--nsamples", calibration->nsamples},
                        {"--seqlen", calibration->seqlen},
                        {"--seed", calibration->seed},
                        {"--random-percent", calibration->random_percent},
                        {"--balance-experts", calibration->balance_experts}};
  return identity;
}

std::vector<std::string> run_differences(const Json& before, const Json& now,
                                         const DifferenceWords& words) {
  const auto is_of_modules = [](const Difference& d) { return d.field.starts_with("plan."); };
  const auto is_of_calibration = [](const Difference& d) {
    return d.field.starts_with(kCalibration);
  };
  const auto is_of_any_calibrated_run = [&](const Difference& d) {
    return is_of_calibration(d) || d.field.starts_with("settings.") || d.field == "dtype" ||
           d.field == "device";
  };
  const auto is_of_no_identity = [](const Difference& d) {
    return d.field.starts_with(kOptions) || d.field.starts_with(WorkFolder::kFiles) ||
           d.field == kSteps;  // they follow from the score
  };
  std::vector<Difference> found = compare(with_ranks(before), with_ranks(now));
  std::erase_if(found, is_of_no_identity);
  // there may be thousands of modules
  std::stable_partition(found.begin(), found.end(), std::not_fn(is_of_modules));
  std::vector<std::string> texts;
  if (before.contains(kCalibration) != now.contains(kCalibration)) {
    std::erase_if(found, is_of_any_calibrated_run);
    texts.push_back(fmt::format("calibration (--calib, --config or --algorithm): {}",
                                now.contains(kCalibration) ? words.added : words.missing));
  } else if (std::erase_if(found, is_of_calibration) > 0) {
    for (const Difference& d :
         compare(before.value(kOptions, Json::object()), now.value(kOptions, Json::object())))
      texts.push_back(text_of(d.field, d, words));
    if (texts.empty())
      texts.emplace_back(
          "the token ids of the same options (another text in the files of --calib)");
  }
  for (const Difference& d : found) texts.push_back(text_of(name_of(d.field), d, words));
  return texts;
}

void require_no_differences(std::size_t rank, const std::vector<std::string>& differences) {
  if (!differences.empty())
    fail("the processes of a run must be started alike, but rank {} differs from rank 0: {}", rank,
         listed(differences));
}

void require_same_run(const Json& manifest, Comm& comm) {
  const std::vector<std::string> all = comm.all_gather(to_text(manifest));
  for (std::size_t rank = 1; rank < all.size(); rank++)
    require_no_differences(rank, run_differences(Json::parse(all.front()), Json::parse(all[rank]),
                                                 words_of(static_cast<int>(rank))));
}

std::string listed(std::vector<std::string> differences) {
  constexpr std::size_t kMaximum = 8;
  const std::size_t more = differences.size() > kMaximum ? differences.size() - kMaximum : 0;
  differences.resize(differences.size() - more);
  return fmt::format("{}{}", fmt::join(differences, "; "),
                     more > 0 ? fmt::format("; and {} more", more) : "");
}

}  // namespace aqhost
