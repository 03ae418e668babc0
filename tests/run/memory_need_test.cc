#include "run/memory_need.h"

#include "base/error.h"
#include "run/calibrated_run.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

MemoryNeed need_of(const OpenModel& open, const std::string& recipe, int64_t tokens = 1000,
                   int64_t originals = 500) {
  return memory_need(open.reader(), open.model(), open.plan(recipe), tokens, originals,
                     at::kBFloat16, true);
}

/// Where a run on a GPU holds its hidden states, given the bytes that the GPU and the host have
/// room for. Needs no GPU.
StatesPlace place_of(const OpenModel& open, const Plan& plan, int64_t device, int64_t host) {
  const std::unique_ptr<Comm> alone = Comm::alone();
  CalibratedRunOptions options{at::kBFloat16, at::Device(at::kCUDA, 0)};
  options.comm = alone.get();
  set_memory(options, open.reader(), open.model(), plan, some_windows(8, 64),
             {device, false, "work", host});
  return options.states;
}

TEST_CASE("the memory need counts states, a layer, a solver's group and the embedding") {
  const OpenModel open({.hidden = 64, .inner = 48, .experts = 4, .heads = 4});
  const MemoryNeed need = need_of(open, "{default: {group_size: 16}}");
  const int64_t layer = 4 * 64 * 64 + 4 * 64 + 4 * 3 * 64 * 48;
  CHECK(need.layers == 1500 * 64 * (4 + 2) + 2 * layer);
  CHECK(need.solver == 28 * 64 * 64 + 20 * 64 * 3 * 64 + 40 * 64 * 3 * 64);  // q, k and v
  CHECK(need.states == 1500 * 64 * 4);
  CHECK(need.embedding == 2 * 2048 * 64);
}

TEST_CASE("refine, which computes in float32, and lm_head need more") {
  const OpenModel open;
  const MemoryNeed plain = need_of(open, "{default: {group_size: 16}}");
  const MemoryNeed refined = need_of(open, "{default: {group_size: 16, refine: {steps: 2}}}");
  CHECK(refined.layers > plain.layers + 1000 * 64 * 4);
  const MemoryNeed head =
      need_of(open, "{default: {group_size: 16}, overrides: [{pattern: lm_head, skip: false}]}");
  CHECK(head.embedding >= plain.embedding);
}

TEST_CASE("a limit below any part of the need is refused, and the message names that part") {
  const MemoryNeed need{100'000'000, 50'000'000, 80'000'000, 40'000'000};
  const SolveRoom room = room_to_solve(need, 170'000'000, "--memory-limit");
  CHECK(room.layer == 70'000'000);
  CHECK(room.head == 90'000'000);
  const auto refused = [&](int64_t limit) {
    try {
      room_to_solve(need, limit, "--memory-limit");
    } catch (const Error& e) {
      return doctest::String(e.what());
    }
    return doctest::String("accepted");
  };
  CHECK(refused(90'000'000) ==
        doctest::Contains(
            "--memory-limit 90: hidden states, layer weights, the inputs of modules and "
            "the modules that are solved at once take 150 MB"));
  CHECK(refused(140'000'000) == doctest::Contains("solved at once take 150 MB"));
  CHECK(refused(150'000'000) == "accepted");
  MemoryNeed head = need;
  head.embedding = 80'000'000;
  CHECK_THROWS_WITH(room_to_solve(head, 150'000'000, "--memory-limit"),
                    doctest::Contains("the embedding or of lm_head take 160 MB"));
}

TEST_CASE("without hidden states, a layer and what is outside the layers need less") {
  const MemoryNeed need{100'000'000, 50'000'000, 70'000'000, 40'000'000, 10'000'000};
  CHECK(fits(need, 150'000'000));
  CHECK_FALSE(fits(need, 149'999'999));
  const MemoryNeed less = without_states(need);
  CHECK(fits(less, 70'000'000));
  CHECK_FALSE(fits(less, 69'999'999));
  CHECK(room_to_solve(less, 70'000'000, "--memory-limit").layer == 50'000'000);
  CHECK_THROWS_WITH(
      room_to_solve(less, 10'000'000, "--memory-limit"),
      doctest::Contains(
          "--memory-limit 10: layer weights, the inputs of modules and the modules that "
          "are solved at once take 70 MB"));
  CHECK(room_to_solve(less, 70'000'000, "--memory-limit").head == 70'000'000);
}

TEST_CASE("in a run on a GPU, hidden states go to the host's memory, and else to a file") {
  const OpenModel open;
  for (const char* recipe :
       {"{default: {group_size: 16}}", "{default: {group_size: 16}, sequential: false}",
        "{default: {group_size: 16, refine: {steps: 2}}}"}) {
    CAPTURE(shown(recipe));
    const Plan plan = open.plan(recipe);
    const MemoryNeed need =
        memory_need(open.reader(), open.model(), plan, 8 * 64, 8 * 64, at::kBFloat16, false);
    CHECK(need.states == 2 * 8 * 64 * 64 * 4);
    const int64_t kept = keeps_input_of_layers(plan) ? need.states / 2 : 0;
    CHECK(need.copies == need.states + kept);
    CHECK(need.host >= need.states + kept);
    const int64_t whole = need.layers + need.solver, rest = whole - need.states - need.copies;
    REQUIRE(need.states + need.embedding <= rest);

    const StatesPlace device = place_of(open, plan, whole, 0);
    CHECK(device.device.is_cuda());
    CHECK_FALSE(device.in_files());
    const StatesPlace host = place_of(open, plan, whole - 1, need.host);
    CHECK(host.device.is_cpu());
    CHECK_FALSE(host.in_files());
    const StatesPlace file = place_of(open, plan, rest, need.host - 1);
    CHECK(file.device.is_cpu());
    CHECK(file.folder == "work");
    CHECK_THROWS_WITH(place_of(open, plan, rest - 1, need.host),
                      doctest::Contains(": layer weights, the inputs of modules and the modules"));
  }
}

TEST_CASE(
    "rows are solved in as few parts as there is room for, and all at once if there is room") {
  const int64_t features = 1000, rows = 1000;
  const int64_t all = solve_bytes(features, rows, rows);
  CHECK(all == 28'000'000 + 60'000'000);
  CHECK(rows_to_solve_at_once(features, rows, 0) == 0);  // no limit
  CHECK(rows_to_solve_at_once(features, rows, all) == 0);
  CHECK(rows_to_solve_at_once(features, rows, all - 1) == 512);  // two parts
  for (const int64_t room : {all - 1, all - 10'000'000, all - 25'000'000, all - 27'000'000}) {
    const int64_t at_once = rows_to_solve_at_once(features, rows, room);
    CHECK(at_once % 256 == 0);
    CHECK(solve_bytes(features, rows, at_once + 63) <= room);
  }
  CHECK(rows_to_solve_at_once(features, rows, solve_bytes(features, rows, 319)) == 256);
  CHECK(rows_to_solve_at_once(features, rows, 1) == 256);
}

}  // namespace
}  // namespace aqhost
