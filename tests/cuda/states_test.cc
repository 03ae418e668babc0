// Compares hidden states in the host's memory with those on a GPU.

#include "run/states.h"

#include <ATen/CPUGeneratorImpl.h>

#include <map>

#include "forward/fake_model.h"
#include "quant/formats.h"
#include "run/layer_walk.h"
#include "run/refine.h"
#include "temp_folder.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

const at::Device kGpu(at::kCUDA, 0);

/// A layer of the fake model on the GPU, which is quantized while hidden states at `place` go
/// through it, and then refined if `steps` is not 0.
struct Walk {
  Walk(const StatesPlace& place, at::ScalarType type, bool sequential = true, int64_t steps = 0) {
    fake.desc.hidden_size = 64;
    fake.ffn.inner_size = 48;
    fake.ffn.shared_size = 32;
    fake.ffn.shared_gated = 1;
    model = fake.open();
    format = int_format(3, {{"group_size", -1}});
    for (const Module& module : model->modules()) {
      PlannedModule planned;
      planned.module = &module;
      const int32_t role = module.key.role;
      if (module.key.layer == 0 && role != AQ_ROLE_ROUTER && role != AQ_ROLE_SHARED_ROUTER)
        planned.format = format;
      planned.recipe.refine_steps = steps;
      planned.recipe.refine_batch = 4;
      plan.modules.push_back(planned);
    }
    plan.settings.sequential = sequential;
    x = states_at(place, 400, 1);
    original = states_at(place, steps > 0 ? 400 : 250, 2);
    const at::Tensor begin = place.copy_of(x);
    at::Tensor before = place.copy_of(x);
    const MemorySource source = fake.source();
    Layer layer(source, *model, 0, 40, at::TensorOptions(kGpu).dtype(type));
    const auto comm = Comm::alone();
    LayerWalk(
        plan, 0, layer, 1 << 30, 0, *comm,
        [this](std::vector<Solution> more) {
          std::move(more.begin(), more.end(), std::back_inserter(solutions));
        },
        timer)
        .run(x, original, before);
    CHECK_FALSE(at::equal(x, begin));
    if (steps > 0) {
      refinement = refine_layer(source, plan, 0, layer, solutions, before, original,
                                refine_options(plan, 0, 1), *comm);
      x.copy_(before);
    }
  }

  /// More windows of 40 tokens than one batch has.
  static at::Tensor states_at(const StatesPlace& place, int64_t windows, uint64_t seed) {
    return place.empty({windows, 40, 64})
        .copy_(at::randn({windows, 40, 64}, at::detail::createCPUGenerator(seed)));
  }

  FakeModel fake;
  std::unique_ptr<const Model> model;
  std::shared_ptr<const Format> format;
  Plan plan;
  PhaseTimer timer;
  at::Tensor x, original;
  std::vector<Solution> solutions;
  Refinement refinement;
};

TEST_CASE("hidden states in the host's memory or in a file become those on the GPU, to the bit") {
  const TempFolder folder;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
    for (const bool sequential : {true, false}) {
      CAPTURE(type);
      CAPTURE(sequential);
      const Walk there(StatesPlace{kGpu, {}}, type, sequential);
      for (const StatesPlace& place : {StatesPlace{}, StatesPlace{at::kCPU, folder.path()}}) {
        CAPTURE(place.in_files());
        const Walk here(place, type, sequential);
        CHECK(here.x.is_cpu());
        CHECK(at::equal(here.x, there.x.cpu()));
        CHECK(at::equal(here.original, there.original.cpu()));
        REQUIRE(here.solutions.size() == there.solutions.size());
        for (std::size_t i = 0; i < here.solutions.size(); i++)
          CHECK((here.solutions[i].matrix.codes == there.solutions[i].matrix.codes));
      }
    }
}

TEST_CASE("learned rounding takes hidden states from the host's memory") {
  // a GPU adds up gradients in an order that changes, so the results are not equal to the bit
  const Walk there(StatesPlace{kGpu, {}}, at::kFloat, true, 20), here({}, at::kFloat, true, 20);
  CHECK(here.x.is_cpu());
  CHECK(here.refinement.error_before == doctest::Approx(there.refinement.error_before));
  CHECK(here.refinement.error_after < here.refinement.error_before);
  CHECK(here.refinement.error_after == doctest::Approx(there.refinement.error_after).epsilon(0.1));
}

}  // namespace
}  // namespace aqhost
