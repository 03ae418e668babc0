#include "run/memory_need.h"

#include "base/error.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

MemoryNeed need_of(const OpenModel& open, const std::string& recipe, int64_t tokens = 1000,
                   int64_t originals = 500) {
  return memory_need(open.reader(), open.model(), open.plan(recipe), tokens, originals,
                     at::kBFloat16, true);
}

TEST_CASE("the memory need counts states, a layer, a solver's group and the embedding") {
  const OpenModel open({.hidden = 64, .inner = 48, .experts = 4, .heads = 4});
  const MemoryNeed need = need_of(open, "{default: {group_size: 16}}");
  const int64_t layer = 4 * 64 * 64 + 4 * 64 + 4 * 3 * 64 * 48;
  CHECK(need.layers == 1500 * 64 * (4 + 2) + 2 * layer);
  CHECK(need.solver == 28 * 64 * 64 + 60 * 64 * 3 * 64);  // q, k and v
  CHECK(need.embedding == 1500 * 64 * 4 + 2 * 2048 * 64);
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
  const MemoryNeed need{100'000'000, 50'000'000, 120'000'000};
  CHECK(room_for_experts(need, 170'000'000, "--memory-limit") == 70'000'000);
  const auto refused = [&](int64_t limit) {
    try {
      room_for_experts(need, limit, "--memory-limit");
    } catch (const Error& e) {
      return doctest::String(e.what());
    }
    return doctest::String("accepted");
  };
  CHECK(refused(90'000'000) ==
        doctest::Contains("--memory-limit 90: hidden states and layer weights alone take 100 MB"));
  CHECK(refused(140'000'000) == doctest::Contains("solved at once take 150 MB"));
  CHECK(refused(150'000'000) == "accepted");
}

}  // namespace
}  // namespace aqhost
