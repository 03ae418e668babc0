#include "run/estimate.h"

#include "plugin/config_only.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

constexpr double kFast = 1e30;  // a rate at which operations take no time
constexpr double kStart = 3;    // seconds of a run on a GPU besides its layers

/// The least seconds of the layers of a run over 8 windows of 64 tokens on a GPU with these rates,
/// as a multiple of the floor; all windows also run through the original model.
double layers(const OpenModel& open, const std::string& recipe, const MachineRates& rates) {
  const RunEstimate run =
      estimate_run(open.reader(), open.model(), open.plan(recipe), 8, 64, rates);
  return (run.least_seconds - kStart) / 2.6;
}

const std::string kRecipe = "{default: {group_size: 16}}";

TEST_CASE("the floor has the operations of factors, solves and the scale search") {
  const OpenModel open;  // 2 layers, hidden 64, inner 48, 4 experts
  const double d3 = 64 * 64 * 64, inner3 = 48 * 48 * 48;
  // q, k and v share an input, as do gate and up
  CHECK(layers(open, kRecipe, {"", false, true, kFast, kFast, kFast, 1}) ==
        doctest::Approx(2 * (2 + 4) * 2 * d3 / 3 + 2 * 4 * 2 * inner3 / 3));
  CHECK(layers(open, kRecipe, {"", false, true, kFast, 1, kFast, kFast}) ==
        doctest::Approx(2 * 12 * (4 * d3 + 4 * (2 * 48 * 64 * 64 + 64 * 48 * 48))));
  CHECK(layers(open, kRecipe, {"", false, true, kFast, kFast, 1, kFast}) ==
        doctest::Approx(2 * 8 * 45 * (4 * 64 * 64 + 4 * 3 * 64 * 48)));
}

TEST_CASE("the forward pass and the Hessians are counted for both models, experts by their share") {
  const OpenModel open;
  const double n = 2 * 8 * 64;
  const double attention = 2 * n * 4 * 64 * 64 + n * 64 * 4 * (16 + 16);
  const double ffn = 2 * n * 4 * 64 + 2 * (n / 2) * 4 * 3 * 64 * 48;  // router; 2 of 4 experts
  const double hessians = 2 * n * 2 * 64 * 64 + 2 * (n / 2) * 4 * (64 * 64 + 48 * 48);
  CHECK(layers(open, kRecipe, {"", false, true, 1, kFast, kFast, kFast}) ==
        doctest::Approx(2 * (attention + ffn + hessians)));
}

TEST_CASE("a run has a range of times, and takes at least the time for its files") {
  const OpenModel open;
  const Plan plan = open.plan(kRecipe);
  const auto run = [&](const MachineRates& rates) {
    return estimate_run(open.reader(), open.model(), plan, 8, 64, rates);
  };
  const RunEstimate slow = run({"", false, true, 1e6, 1e6, 1e6, 1e6});
  CHECK(slow.most_seconds - kStart == doctest::Approx(2 * (slow.least_seconds - kStart)));
  const RunEstimate fast = run({"", false, true, kFast, kFast, kFast, kFast});
  CHECK(fast.least_seconds > kStart);
  CHECK(fast.least_seconds == fast.most_seconds);
  CHECK(fast.memory_bytes > fast.least_memory_bytes);
}

TEST_CASE("rounding to nearest takes the time of the scale search, and no windows") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  const MachineRates rates{"", true, true, 1e6, 1e6, 1e6, 1e6};
  const RunEstimate few = estimate_run(open.reader(), open.model(), plan, 8, 64, rates);
  const RunEstimate many = estimate_run(open.reader(), open.model(), plan, 800, 64, rates);
  CHECK(few.least_seconds == many.least_seconds);
  CHECK(few.least_seconds ==
        doctest::Approx(1 + 2 * 2 * 8 * 45 * (4 * 64 * 64 + 4 * 3 * 64 * 48) / 1e6).epsilon(1e-3));
  CHECK(few.memory_bytes == 0);
}

TEST_CASE("the rates of this CPU are measured") {
  const MachineRates rates = machine_rates("cpu");
  CHECK(rates.cpu);
  CHECK(rates.measured);
  CHECK(rates.float32 > 1e8);
  CHECK(rates.float64 < rates.float32);
}

TEST_CASE("config.json alone gives the tensors of the checkpoint") {
  const OpenModel open({.biases = true, .config = "{\"attention_bias\": true}"});
  const ConfigOnly alone(open / "model/config.json", registry(), "auto");
  REQUIRE(alone.tensors().size() == open.reader().tensors().size());
  for (const TensorInfo& tensor : open.reader().tensors()) {
    const TensorInfo* found = alone.find(tensor.name);
    REQUIRE(found != nullptr);
    CHECK(found->shape == tensor.shape);
    CHECK(found->dtype == tensor.dtype);
  }
  CHECK(alone.find("model.layers.9.mlp.gate.weight") == nullptr);
  CHECK_THROWS_WITH(alone.read_f32("lm_head.weight", 0, {}),
                    doctest::Contains("only config.json is there"));
}

}  // namespace
}  // namespace aqhost
