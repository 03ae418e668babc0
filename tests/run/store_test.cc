#include "run/store.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/file.h"
#include "base/sha256.h"
#include "kept_messages.h"
#include "run/memory_need.h"
#include "run/quantize.h"
#include "run/run_difference.h"
#include "run/status.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;
using doctest::Contains;

/// Keeps all messages. When the run begins to work on something whose name contains `at`, it calls
/// `act`, or lets the run fail if there is no `act`.
class Witness : public KeptMessages {
 public:
  Witness(std::string at, std::function<void()> act) : at_(std::move(at)), act_(std::move(act)) {}

  void update(double /*done*/, const std::string& detail) override {
    if (at_.empty() || detail.find(at_) == std::string::npos) return;
    if (!act_) fail("stopped here");
    std::exchange(at_, "");
    act_();
  }

 private:
  std::string at_;
  const std::function<void()> act_;
};

struct Run {
  std::string recipe = "{default: {group_size: 16}}";
  uint64_t seed = 0;
  std::string at;  // where the run fails; empty: nowhere
  Resume resume = Resume::kAuto;
  std::function<void()> act;  // if set, it is called there, and the run does not fail
  int64_t memory_limit = 0;
  std::string dtype = "auto";

  explicit Run(std::string of = "{default: {group_size: 16}}", uint64_t with = 0,
               std::string where = "", Resume how = Resume::kAuto)
      : recipe(std::move(of)), seed(with), at(std::move(where)), resume(how) {}
};

/// Runs to folder / name. Returns the messages, and the error if the run fails.
std::string run(const OpenModel& open, const std::string& name, const Run& how = Run()) {
  const Plan plan = open.plan(how.recipe);
  Witness witness(how.at, how.act);
  QuantizeOptions options;
  options.target = open / name;
  options.resume = how.resume;
  options.memory_limit = how.memory_limit;
  options.dtype = how.dtype;
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

/// All files of an export except its report and the page of it, which contain times.
std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : list_folder(folder))
    if (const fs::path name = entry.path().filename();
        entry.is_regular_file() && name != "quantization_report.json" && name != "report.html")
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

/// Changes a byte in the middle of a file, or cuts the file there.
void damage(const fs::path& file, bool cut) {
  std::string content = read_file(file);
  if (cut)
    content.resize(content.size() / 2);
  else
    content[content.size() / 2] ^= 1;
  write_file(file, content);
}

TEST_CASE("a run that failed goes on after its finished layers and writes the same bytes") {
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

TEST_CASE("a run that fails before its first layer is finished leaves nothing behind") {
  const OpenModel open;
  CHECK(run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.0."}) ==
        "error: stopped here");
  CHECK(!fs::exists(open / "out.work"));
}

TEST_CASE("a run that was killed while it wrote its first record begins anew") {
  const OpenModel open(three_layers());
  run(open, "whole");
  run(open, "out", Run("{default: {group_size: 16}}", 0, "layers.1."));
  const fs::path progress = open / "out.work/progress";
  for (const auto& entry : list_folder(progress)) fs::remove(entry.path());
  write_file(progress / "unit-00000.json.part", "{");
  CHECK_FALSE(run(open, "out").starts_with("error"));
  CHECK(files_of(open / "out") == files_of(open / "whole"));
}

TEST_CASE("another run is refused, names what differs and changes nothing") {
  const OpenModel open(three_layers());
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.2."});
  const auto before = files_of(open / "out.work/export");
  const auto progress = files_of(open / "out.work/progress");
  const std::string other_recipe = run(open, "out", Run{"{default: {group_size: 16, wq: int8}}"});
  CHECK(contains(other_recipe, "out.work: holds the unfinished work of another run: "));
  CHECK(contains(other_recipe,
                 "model.layers.0.mlp.experts.0.down_proj.format (--config or --algorithm): int4 "
                 "g16 before, int8 g16 now"));
  CHECK(contains(other_recipe, "more. Run it as before to go on"));
  CHECK(contains(run(open, "out", Run{"{default: {group_size: 16}}", 7}),
                 "work of another run: --seed: 0 before, 7 now. Run it"));
  CHECK(contains(run(open, "out", Run{"{default: {group_size: 16}, percdamp: 0.2}"}),
                 "percdamp (--config): 0.1 before, 0.2 now"));
  const std::string manifest = read_file(open / "out.work/manifest.json");
  write_file(open / "out.work/manifest.json", "{");
  CHECK(contains(run(open, "out"), "it has no manifest.json that says so"));
  write_file(open / "out.work/manifest.json", manifest);
  CHECK(files_of(open / "out.work/export") == before);
  CHECK(files_of(open / "out.work/progress") == progress);
  CHECK(run(open, "out", Run{"{default: {group_size: 16}}", 7, "", Resume::kNever}).empty());
  CHECK(!fs::exists(open / "out.work"));
}

TEST_CASE("--resume required fails if there is no finished layer") {
  const OpenModel open;
  CHECK(contains(run(open, "out", Run{"{default: {group_size: 16}}", 0, "", Resume::kRequired}),
                 "there is nothing to go on with"));
  CHECK(!fs::exists(open / "out.work"));
}

TEST_CASE("damaged files in the work folder cause a warning, and their layers are done again") {
  const OpenModel open(three_layers());
  run(open, "whole");
  const auto whole = files_of(open / "whole");
  struct Case {
    const char* file;
    const char* message;  // "": the run is refused; otherwise the result is the same
  };
  for (const bool cut : {false, true})
    for (const auto& [file, message] :
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
      if (*message == '\0') {
        CHECK(contains(heard, "the first layer is not whole; pass --resume never"));
        fs::remove_all(open / "out.work");
        continue;
      }
      CHECK(contains(heard, message));
      CHECK(files_of(open / "out") == whole);
      fs::remove_all(open / "out");
    }
}

TEST_CASE("the run is refused if there are no whole hidden states to go on from") {
  const OpenModel open(three_layers());
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.2."});
  for (const int unit : {0, 1})
    damage(open / fmt::format("out.work/progress/states-0000{}.safetensors", unit), true);
  CHECK(
      contains(run(open, "out"), "2 of 4 parts are whole, but not the hidden states behind them"));
  CHECK(contains(run(open, "out", Run{"{default: {group_size: 16}}", 0, "", Resume::kNever}), ""));
  CHECK(fs::exists(open / "out/config.json"));
}

TEST_CASE("a run that ended before hidden states were stored, as on a GPU, begins anew") {
  const OpenModel open(three_layers());
  run(open, "whole");
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.2."});
  const fs::path progress = open / "out.work" / "progress";
  for (const auto& entry : list_folder(progress)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("states-")) fs::remove(entry.path());
    if (!name.starts_with("unit-")) continue;
    Json record = read_json(entry.path())["record"];
    record["states"] = Json::array();
    const std::string text = to_text(record);
    const Json file{{"sha256", sha256_of(std::as_bytes(std::span(text)))}, {"record", record}};
    write_file(entry.path(), to_text(file));
  }
  Run required;
  required.resume = Resume::kRequired;
  CHECK(contains(run(open, "out", required), "cannot be gone on with"));
  const std::string heard = run(open, "out");
  CHECK(contains(
      heard,
      "the run begins anew, because it ended before hidden states were stored; 2 of 4 parts "
      "are computed again"));
  CHECK(heard.find("error") == std::string::npos);
  CHECK(files_of(open / "out") == files_of(open / "whole"));
}

TEST_CASE("a run whose hidden states are in files goes on, and writes the same bytes") {
  const OpenModel open(three_layers());
  for (const char* recipe :
       {"{default: {group_size: 16}, overrides: [{pattern: lm_head, wq: int8, group_size: 16}]}",
        "{default: {group_size: 16, refine: {steps: 3}}}"}) {
    Run whole(recipe);
    whole.dtype = "float32";
    run(open, "whole", whole);
    Run limited = whole;
    const MemoryNeed need = memory_need(open.reader(), open.model(), open.plan(recipe), 8 * 64,
                                        8 * 64, at::kFloat, true);
    limited.memory_limit = std::max(need.layers + need.solver, need.states + need.embedding) - 1;
    limited.at = "layers.2.";
    CHECK(contains(run(open, "out", limited), "they are held in a file"));
    limited.at = "";
    const std::string heard = run(open, "out", limited);
    CHECK(contains(heard, "they are held in a file"));
    CHECK(contains(heard, "going on after 2 finished layers"));
    CHECK(files_of(open / "out") == files_of(open / "whole"));
    fs::remove_all(open / "out");
    fs::remove_all(open / "whole");
  }
}

TEST_CASE("a file of the user stays in the work folder") {
  const OpenModel open(three_layers());
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.1."});
  write_file(open / "out.work/notes.txt", "mine");
  run(open, "out");
  CHECK(fs::exists(open / "out/config.json"));
  CHECK(read_file(open / "out.work/notes.txt") == "mine");
}

TEST_CASE("a run with --resume never that is refused leaves the work of the earlier run") {
  const OpenModel open(three_layers());
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.2."});
  const auto exported = files_of(open / "out.work/export");
  const auto progress = files_of(open / "out.work/progress");
  Run anew{"{default: {group_size: 16}}", 0, "", Resume::kNever};
  anew.memory_limit = 1;
  CHECK(contains(run(open, "out", anew), "--memory-limit 0: layer weights"));
  const fs::path link = open / "model/special_tokens_map.json";
  fs::create_symlink("nowhere", link);
  anew.memory_limit = 0;
  CHECK(contains(run(open, "out", anew), "special_tokens_map.json: is a link to nowhere"));
  fs::remove(link);
  CHECK(files_of(open / "out.work/export") == exported);
  CHECK(files_of(open / "out.work/progress") == progress);
  CHECK(contains(run(open, "out"), "going on after 2 finished layers"));
}

TEST_CASE("a work folder that is removed or replaced during a run ends it with one sentence") {
  for (const char* recipe :
       {"{default: {group_size: 16}}", "{default: {group_size: 16, algorithm: rtn}}"})
    for (const std::string label : {"removed", "export removed", "replaced"}) {
      CAPTURE(recipe);
      CAPTURE(label);
      const OpenModel open(three_layers());
      const fs::path work = open / "out.work";
      Run disturbed{recipe, 0, "layers.2."};  // the first layer is finished then
      disturbed.act = [&] {
        // the run may be writing to the folder, so it is moved at once
        fs::rename(label == "export removed" ? work / "export" : work, open / "moved");
        if (label != "replaced") {
          fs::remove_all(open / "moved");
          return;
        }
        for (const char* folder : {"export", "progress"}) fs::create_directories(work / folder);
      };
      const std::string changed = (label == "export removed" ? work / "export" : work).string();
      const std::string heard = run(open, "out", disturbed);
      CHECK(heard ==
            fmt::format("error: {}: this folder was removed, moved or replaced while the run was "
                        "writing to it; put it back to go on, or begin anew without it, by the "
                        "same command, and leave it alone until the run has ended",
                        changed));
      CHECK(!fs::exists(open / "out"));
      CHECK(fs::exists(work) == (label != "removed"));
      if (label != "replaced") continue;
      CHECK(fs::is_empty(work / "export"));
      CHECK(fs::is_empty(work / "progress"));
      fs::remove_all(work);
      fs::rename(open / "moved", work);
      CHECK(contains(run(open, "out", Run{recipe}), "going on after "));
      CHECK(fs::exists(open / "out/config.json"));
    }
}

TEST_CASE("a file that the user puts among those of the export is not exported, but set aside") {
  const OpenModel open(three_layers());
  run(open, "whole");
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.1."});
  write_file(open / "out.work/export/notes.txt", "mine");
  CHECK(contains(run(open, "out"),
                 "out.work/export: notes.txt was not written by the run and is not part of the "
                 "export, but now in "));
  CHECK(files_of(open / "out") == files_of(open / "whole"));
  CHECK(read_file(open / "out.work/not-exported/notes.txt") == "mine");
  const Json report = read_json(open / "out/quantization_report.json");
  CHECK(report["files"] == read_json(open / "whole/quantization_report.json")["files"]);
}

TEST_CASE("a side file that the original no longer has is not exported by the next try") {
  const OpenModel open(three_layers());
  write_file(open / "model/old.jinja", "");
  run(open, "out", Run{"{default: {group_size: 16}}", 0, "layers.1."});
  CHECK(fs::exists(open / "out.work/export/old.jinja"));
  fs::remove(open / "model/old.jinja");
  CHECK(run(open, "out").find("warning") == std::string::npos);
  CHECK(!fs::exists(open / "out/old.jinja"));
  CHECK(!fs::exists(open / "out.work"));
}

CalibrationOptions calibrated_on(const std::string& file) {
  CalibrationOptions options;
  options.files = {{file}};
  return options;
}

TEST_CASE("differences of two runs name the option, and both values where they are short") {
  const std::string sha(64, 'a');
  const Json identity{{"version", "0.1"},
                      {"dtype", "bfloat16"},
                      {"source", {{"config.json", sha}}},
                      {"plugins", {{"int4", sha}}},
                      {"plan", {{"q_proj", {{"format", "int4"}}}}},
                      {"settings", {{"percdamp", 0.1}}},
                      {"calibration", {{"token_ids", sha}}}};
  const Json before = run_manifest(identity, calibrated_on("a.txt"));
  const auto with = [&](const char* pointer, const Json& value) {
    Json now = before;
    now[Json::json_pointer(pointer)] = value;
    return run_differences(before, now);
  };
  using Texts = std::vector<std::string>;
  CHECK(run_differences(before, before).empty());
  CHECK(with("/files", {"a", "b"}).empty());
  CHECK(with("/options/--seed", 3).empty());  // the token ids are the same
  CHECK(with("/version", "0.2") == Texts{"the version of aqhost: 0.1 before, 0.2 now"});
  CHECK(with("/dtype", "float32") == Texts{"--dtype: bfloat16 before, float32 now"});
  CHECK(with("/source/config.json", "b" + sha) == Texts{"config.json (--model): changed"});
  CHECK(with("/source/x", sha) == Texts{"x (--model): new"});
  CHECK(with("/plugins/int4", Json()) == Texts{"the plugin int4 (--plugin-dir): missing now"});
  CHECK(with("/settings", Json()) == Texts{"percdamp (--config): 0.1 before, nothing now"});
  CHECK(with("/calibration/token_ids", "b") ==
        Texts{"the token ids of the same options (another text in the files of --calib)"});
  CHECK(with("/ranks", 1).empty());
  CHECK(with("/ranks", 4) == Texts{"the number of processes: 1 before, 4 now"});
  Json rounded = identity;  // to nearest
  for (const char* name : {"calibration", "settings", "dtype"}) rounded.erase(name);
  CHECK(run_differences(before, rounded) ==
        Texts{"calibration (--calib, --config or --algorithm): missing now"});
  CHECK(listed(Texts(8, "d")) == "d; d; d; d; d; d; d; d");
  CHECK(listed(Texts(10, "d")) == "d; d; d; d; d; d; d; d; and 2 more");

  CalibrationOptions other = calibrated_on("a.txt");
  other.files.push_back({"b.txt", 2});
  other.seqlen = 64;
  other.random_percent = 0;
  other.balance_experts = true;
  Json changed = identity;
  changed["calibration"]["token_ids"] = "b";
  changed["plan"]["q_proj"]["format"] = "int8";
  changed["plan"]["a_proj"]["format"] = "int8";
  changed["settings"]["percdamp"] = 0.2;
  CHECK(run_differences(before, run_manifest(changed, other)) ==
        Texts{"--balance-experts: false before, true now",
              "--calib: a.txt before, a.txt, b.txt=2 now", "--random-percent: 50 before, 0 now",
              "--seqlen: 512 before, 64 now", "percdamp (--config): 0.1 before, 0.2 now",
              "a_proj.format (--config or --algorithm): nothing before, int8 now",
              "q_proj.format (--config or --algorithm): int4 before, int8 now"});
}

}  // namespace
}  // namespace aqhost
