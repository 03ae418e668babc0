// Measurements that fail and go on, and divergences compared with those of exports.
#include "allocate/measurement.h"

#include <algorithm>

#include "allocate/allocation.h"
#include "allocate/divergences.h"
#include "base/error.h"
#include "base/file.h"
#include "export/decoded_checkpoint.h"
#include "forward/compute_type.h"
#include "kept_messages.h"
#include "measure/divergence.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;
using doctest::Contains;

/// Keeps all messages, and fails at an update.
class Witness : public KeptMessages {
 public:
  explicit Witness(int update) : left_(update) {}

  void update(double /*done*/, const std::string& /*detail*/) override {
    if (left_-- == 0) fail("stopped here");
  }

 private:
  int left_;
};

struct Measuring {
  std::string score = "loss", candidates = "int3,int8,bf16";
  int fails_at = -1;  // the number of the update at which it fails; -1: none
  uint64_t seed = 0;
  Resume resume = Resume::kAuto;
  std::string recipe = "recipe.yaml", heard{};  // what the observer was told
  bool removes = true;                          // the work folder, at the end
};

CalibrationOptions calibration_of(const Measuring& how) {
  return {{{fs::path(AQ_TESTS_DIR) / "data/kjv_calib.txt"}}, 8, 64, how.seed};
}

/// The parts of a small model, with lm_head.
Allocation parts_of(const OpenModel& open, const Measuring& how) {
  const fs::path base = open / "base.yaml";
  write_file(base,
             "{default: {group_size: 16}, error_feedback: 0,\n"
             " overrides: [{pattern: lm_head, wq: int8}]}");
  return {open.reader(),
          open.model(),
          registry(),
          {parse_candidates(how.candidates), base, "any", BitCost::kStored}};
}

std::vector<AllocatedGroup> groups_of(const Allocation& allocation) {
  return {allocation.parts().begin(), allocation.parts().end()};
}

/// Measures, and returns the scores; none if it fails at an update. The recipe is not written.
Scores measure(const OpenModel& open, Measuring& how) {
  const Allocation allocation = parts_of(open, how);
  const std::unique_ptr<Comm> alone = Comm::alone();
  Witness witness(how.fails_at);
  const MeasureSetup setup{
      open.reader(), open.model(), allocation.plan(), allocation.plans(), at::kFloat,
      *alone,        witness};
  Scores scores;
  try {
    ScoreMeasurement measurement(
        setup, {how.score, calibration_of(how), allocation.candidates(), groups_of(allocation),
                open / how.recipe, how.resume, registry().plugins()});
    scores = measurement.run();
    if (how.removes) measurement.remove_work();
  } catch (const Error& e) {
    if (how.fails_at < 0 || !std::string(e.what()).starts_with("stopped here")) throw;
    witness.heard += e.what();
  }
  how.heard = witness.heard;
  return scores;
}

Scores measure(const OpenModel& open, Measuring&& how) { return measure(open, how); }

TEST_CASE("a measurement that fails goes on after its finished steps with the same scores") {
  const OpenModel open;
  for (const char* score : {"loss", "error", "kl"}) {
    CAPTURE(score);
    const Scores whole = measure(open, {score});
    CHECK(!fs::exists(open / "recipe.yaml.work"));
    bool goes_on = false;
    for (int update = 0; update < 100; update++) {
      CAPTURE(update);
      Measuring first{score};
      first.fails_at = update;
      if (!measure(open, first).empty()) break;
      Measuring second{score};
      CHECK(measure(open, second) == whole);
      const bool kept =
          first.heard.find("run the same command again to go on") != std::string::npos;
      CHECK((second.heard.find("going on after") != std::string::npos) == kept);
      goes_on = goes_on || kept;
      CHECK(!fs::exists(open / "recipe.yaml.work"));
    }
    CHECK(goes_on);
  }
}

TEST_CASE("a finished measurement is not made again") {
  const OpenModel open;
  Measuring how;
  how.removes = false;
  const Scores whole = measure(open, how);
  how.fails_at = 0;
  CHECK(measure(open, how) == whole);
}

TEST_CASE("damaged files of a measurement cause a warning, and their steps are done again") {
  const OpenModel open;
  const Scores whole = measure(open, Measuring{});
  for (const char* name : {"unit-00000.json", "unit-00001.json", "states-00001.safetensors"}) {
    CAPTURE(name);
    Measuring how;
    how.fails_at = 3;  // in the first layer that the gradient passes after the last one
    CHECK(measure(open, how).empty());
    const fs::path file = open / "recipe.yaml.work/progress" / name;
    std::string content = read_file(file);
    content[content.size() / 2] ^= 1;
    write_file(file, content);
    how.fails_at = -1;
    CHECK(measure(open, how) == whole);
    CHECK(shown(how.heard) == Contains("done again"));
  }
}

TEST_CASE("a measurement with other options does not go on") {
  const OpenModel open;
  Measuring before;
  before.fails_at = 4;
  measure(open, before);
  const auto refusal = [&](Measuring now) {
    try {
      measure(open, now);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(shown(refusal({"error"})) == Contains("--score: loss before, error now"));
  CHECK(shown(refusal({"loss", "int3,bf16"})) ==
        Contains("the candidate int8 (--candidates or --config): missing now"));
  CHECK(shown(refusal({"loss", "int8,int3,bf16"})) ==
        Contains("the candidate int3 (--candidates or --config): changed"));
  Measuring seed;
  seed.seed = 1;
  CHECK(shown(refusal(seed)) == Contains("--seed: 0 before, 1 now"));
  Measuring anew{"error"};
  anew.resume = Resume::kNever;
  CHECK(refusal(anew).empty());
  Measuring required;
  required.resume = Resume::kRequired;
  CHECK(shown(refusal(required)) == Contains("nothing to go on with"));
}

TEST_CASE("a measured divergence is that of an export in which one part is quantized") {
  const OpenModel open;
  const Measuring how{"kl", "int3,bf16"};
  const Scores scores = measure(open, Measuring(how));
  const Allocation allocation = parts_of(open, how);
  const std::unique_ptr<Comm> alone = Comm::alone();
  RunObserver silent;
  const MeasureSetup setup{
      open.reader(), open.model(), allocation.plan(), allocation.plans(), at::kFloat,
      *alone,        silent};
  CalibrationOptions text = calibration_of(how);
  text.nsamples = divergence_windows(setup, groups_of(allocation), text.nsamples);
  text.random_percent = 0;
  const at::Tensor windows =
      read_calibration(open.reader(), open.model(), text, at::kFloat, silent).windows;
  for (const Allocation::Part& part : allocation.parts()) {
    CAPTURE(part.name);
    std::string recipe = "{default: {wq: bf16}, error_feedback: 0, overrides: [";
    for (const std::size_t i : part.modules)
      recipe +=
          fmt::format("{{pattern: {}, wq: int3, group_size: 16}},", open.model().modules()[i].name);
    const std::string out = fmt::format("out-{}-{}", part.layer, part.name);
    open.quantize(open.plan(recipe + "]}"), out);
    const auto quantized = open_source(open / out, registry());
    const double expected =
        diverge({&open.reader(), &open.model()}, {{quantized.get(), &open.model()}}, windows, {})
            .models.front()
            .kl;
    double measured = 0, dense = 0;
    for (const std::size_t i : part.modules) {
      measured += scores[0][i];
      dense += scores[1][i];
    }
    CHECK(measured / expected == doctest::Approx(1).epsilon(0.1));
    CHECK(dense == 0);
  }
}

}  // namespace
}  // namespace aqhost
