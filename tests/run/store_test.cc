#include "run/store.h"

#include <functional>

#include "base/error.h"
#include "base/file.h"
#include "run/quantize.h"
#include "run/status.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;
using doctest::Contains;

/// Keeps what it hears, and fails the run when it begins to work on what contains `stop_at`.
class Witness : public RunObserver {
 public:
  explicit Witness(std::string stop_at = "") : stop_at_(std::move(stop_at)) {}

  void warn(const std::string& message) override { heard += "warning: " + message + "\n"; }
  void inform(const std::string& message) override { heard += message + "\n"; }
  void update(double /*done*/, const std::string& detail) override {
    if (!stop_at_.empty() && detail.find(stop_at_) != std::string::npos) fail("stopped here");
  }

  std::string heard;

 private:
  const std::string stop_at_;
};

struct Run {
  std::string recipe = "{default: {group_size: 16}}";
  uint64_t seed = 0;
  std::string stop_at;  // what the run fails at; empty: nothing
  Resume resume = Resume::kAuto;

  explicit Run(std::string of = "{default: {group_size: 16}}", uint64_t with = 0,
               std::string at = "", Resume how = Resume::kAuto)
      : recipe(std::move(of)), seed(with), stop_at(std::move(at)), resume(how) {}
};

/// What a run to folder / name says: its messages, and its error if it fails.
std::string run(const OpenModel& open, const std::string& name, const Run& how = Run()) {
  const Plan plan = open.plan(how.recipe);
  Witness witness(how.stop_at);
  QuantizeOptions options;
  options.target = open / name;
  options.resume = how.resume;
  options.plugins = registry().plugins();
  options.observer = &witness;
  if (plan.needs_calibration())
    options.calibration =
        CalibrationOptions{{{fs::path(AQ_TESTS_DIR) / "data/kjv_calib.txt"}}, 8, 64, how.seed};
  try {
    quantize(open.reader(), open.model(), plan, options);
  } catch (const Error& e) {
    witness.heard += std::string("error: ") + e.what();
  }
  return witness.heard;
}

/// Every file of an export but its report, which tells times.
std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : list_folder(folder))
    if (entry.is_regular_file() && entry.path().filename() != "quantization_report.json")
      files[entry.path().filename().string()] = read_file(entry.path());
  return files;
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE(text);
  return false;
}

SmallModel three_layers() {
  SmallModel sizes;
  sizes.layers = 3;
  return sizes;
}

/// Replaces a byte in the middle of a file, or cuts it there.
void damage(const fs::path& file, bool cut) {
  std::string content = read_file(file);
  if (cut)
    content.resize(content.size() / 2);
  else
    content[content.size() / 2] ^= 1;
  write_file(file, content);
}

TEST_CASE("a run that failed goes on after its finished layers, to the same bytes") {
  const OpenModel open(three_layers());
  for (const char* recipe :
       {"{default: {group_size: 16}}", "{default: {group_size: 16, algorithm: rtn}}",
        "{default: {group_size: 16, refine: {steps: 3}}}",
        "{default: {group_size: 16}, overrides: [{pattern: lm_head, wq: int8, group_size: 16}]}",
        "{default: {group_size: 16}, overrides: [{pattern: '*layers.[12].*', skip: true}]}"}) {
    CAPTURE(recipe);
    run(open, "whole", Run{recipe});
    CHECK(
        contains(run(open, "out", Run{recipe, 0, "layers.2."}), "stopped here. 2 finished layers"));
    CHECK(!fs::exists(open / "out"));
    const RunStatus status = read_status(open / "out.work");
    CHECK(status.layers == 3);
    CHECK(status.finished_layers == 2);
    CHECK(contains(run(open, "out", Run{recipe}), "going on after 2 finished layers"));
    CHECK(files_of(open / "out") == files_of(open / "whole"));
    CHECK(!fs::exists(open / "out.work"));
    const Json report = read_json(open / "out/quantization_report.json");
    Json before = read_json(open / "whole/quantization_report.json");
    CHECK(report["modules"] == before["modules"]);
    CHECK(report["experts"] == before["experts"]);
    CHECK(report["totals"]["resumed_layers"] == 2);
    for (const char* name : {"out", "whole"}) fs::remove_all(open / name);
  }
}

TEST_CASE("a run that fails before its first layer is finished leaves nothing") {
  const OpenModel open;
  CHECK(run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.0."}) ==
        "error: stopped here");
  CHECK(!fs::exists(open / "out.work"));
}

TEST_CASE("another run is refused with each field that differs, and touches nothing") {
  const OpenModel open(three_layers());
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.2."});
  const auto before = files_of(open / "out.work/export");
  const auto progress = files_of(open / "out.work/progress");
  const std::string other_recipe = run(open, "out", Run{"{default: {group_size: 16, wq: int8}}"});
  CHECK(contains(other_recipe, "out.work: holds the unfinished work of another run: "));
  CHECK(contains(other_recipe,
                 "plan.model.layers.0.mlp.experts.0.down_proj.format: \"int4 g16\" "
                 "before, \"int8 g16\" now"));
  CHECK(contains(other_recipe, "more. Run it as before to go on"));
  CHECK(contains(run(open, "out", Run{"{default: {group_size: 16}}", 7}),
                 "calibration.token_ids: \""));
  CHECK(contains(run(open, "out", Run{"{default: {group_size: 16}, percdamp: 0.2}"}),
                 "settings.percdamp: 0.1 before, 0.2 now"));
  const std::string manifest = read_file(open / "out.work/manifest.json");
  write_file(open / "out.work/manifest.json", "{");
  CHECK(contains(run(open, "out"), "it has no manifest.json that says so"));
  write_file(open / "out.work/manifest.json", manifest);
  CHECK(files_of(open / "out.work/export") == before);
  CHECK(files_of(open / "out.work/progress") == progress);
  CHECK(run(open, "out", Run{"{default: {group_size: 16}}", 7, "", Resume::kNever}).empty());
  CHECK(!fs::exists(open / "out.work"));
}

TEST_CASE("--resume required fails where there is nothing to go on with") {
  const OpenModel open;
  CHECK(contains(run(open, "out", Run{"{default: {group_size: 16}}", 0, "", Resume::kRequired}),
                 "there is nothing to go on with"));
  CHECK(!fs::exists(open / "out.work"));
}

TEST_CASE("what is damaged in the work folder is told and done again, or refused") {
  const OpenModel open(three_layers());
  run(open, "whole");
  const auto whole = files_of(open / "whole");
  struct Case {
    const char* file;
    const char* said;  // and the result is the same; "": the run is refused
  };
  for (const bool cut : {false, true})
    for (const auto& [file, said] :
         {Case{"export/model-00002-of-00004.safetensors", "going on after 1 finished layer "},
          Case{"progress/states-00001.safetensors", "going on after 1 finished layer "},
          Case{"progress/unit-00001.json", "going on after 1 finished layer "},
          Case{"export/model-00001-of-00004.safetensors", ""}}) {
      CAPTURE(file);
      CAPTURE(cut);
      run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.2."});
      damage(open / "out.work" / file, cut);
      const std::string heard = run(open, "out");
      CHECK(contains(heard, fs::path(file).filename().string()));
      CHECK(contains(heard, "warning: "));
      if (*said == '\0') {
        CHECK(contains(heard, "the first layer is not whole; pass --resume never"));
        fs::remove_all(open / "out.work");
        continue;
      }
      CHECK(contains(heard, said));
      CHECK(files_of(open / "out") == whole);
      fs::remove_all(open / "out");
    }
}

TEST_CASE("where no hidden states are left to go on from, the run is refused") {
  const OpenModel open(three_layers());
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.2."});
  for (const int unit : {0, 1})
    damage(open / fmt::format("out.work/progress/states-0000{}.safetensors", unit), true);
  CHECK(
      contains(run(open, "out"), "2 of 4 parts are whole, but not the hidden states behind them"));
  CHECK(contains(run(open, "out", Run{"{default: {group_size: 16}}", 0, "", Resume::kNever}), ""));
  CHECK(fs::exists(open / "out/config.json"));
}

TEST_CASE("a file that is not the run's stays in the work folder") {
  const OpenModel open(three_layers());
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.1."});
  write_file(open / "out.work/notes.txt", "mine");
  run(open, "out");
  CHECK(fs::exists(open / "out/config.json"));
  CHECK(read_file(open / "out.work/notes.txt") == "mine");
}

TEST_CASE("differences name the field, and both values") {
  const Json before{{"a", 1}, {"b", {{"c", "x"}, {"d", 2}}}, {"e", {1, 2}}};
  const Json now{{"a", 1}, {"b", {{"c", "y"}}}, {"e", {1, 3}}, {"f", true}};
  CHECK(differences(before, before).empty());
  CHECK(differences(before, now) ==
        std::vector<std::string>{"b.c: \"x\" before, \"y\" now", "b.d: 2 before, nothing now",
                                 "e: [1,2] before, [1,3] now", "f: nothing before, true now"});
}

}  // namespace
}  // namespace aqhost
