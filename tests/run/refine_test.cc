#include "run/refine.h"

#include <ATen/CPUGeneratorImpl.h>

#include "forward/fake_model.h"
#include "quant/formats.h"
#include "run/layer_walk.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

/// A layer of the fake model that is quantized to few bits and refined.
struct Refined {
  /// Without experts that receive tokens: only one is refined, and no token is routed to it.
  Refined(int64_t steps, uint64_t seed, bool met = true) {
    if (!met) fake.ffn.n_experts = 64;
    fake.ffn.shared_size = 12;
    fake.ffn.shared_gated = 1;
    model = fake.open();
    format = int_format(2, {{"group_size", -1}});
    const MemorySource source = fake.source();
    x = at::randn({met ? 12 : 1, met ? 20 : 3, 24}, at::detail::createCPUGenerator(1));
    layer = std::make_unique<Layer>(source, *model, 0, 20);
    const int32_t unmet = met ? -1 : unmet_expert();
    for (const Module& module : model->modules()) {
      PlannedModule planned;
      planned.module = &module;
      const bool router =
          module.key.role == AQ_ROLE_ROUTER || module.key.role == AQ_ROLE_SHARED_ROUTER;
      if (module.key.layer == 0 && (met ? !router : module.key.expert == unmet))
        planned.format = format;
      planned.recipe.refine_steps = steps;
      planned.recipe.refine_batch = 4;
      plan.modules.push_back(planned);
    }
    at::Tensor out = x.clone(), target = x.clone();
    LayerWalk(
        plan, 0, *layer, 1 << 30, *Comm::alone(),
        [this](std::vector<Solution> more) {
          std::move(more.begin(), more.end(), std::back_inserter(modules));
        },
        timer)
        .run(out, target);
    solved = modules;
    const RefineOptions options = refine_options(plan, 0, seed);
    at::Tensor after = x.clone();
    refinement = refine_layer(source, 0, *layer, modules, after, target, options);
    CHECK(at::allclose(after, layer->forward(x), 1e-4, 1e-5));
    error = (layer->forward(x) - target).square().mean().item<double>();
  }

  int32_t unmet_expert() const {
    Routing routing;
    layer->forward(x, &routing);
    int32_t expert = 0;
    while (routing.ids.eq(expert).any().item<bool>()) expert++;
    return expert;
  }

  FakeModel fake;
  std::unique_ptr<const Model> model;
  std::shared_ptr<const Format> format;
  Plan plan;
  PhaseTimer timer;
  std::unique_ptr<Layer> layer;
  std::vector<Solution> modules, solved;
  at::Tensor x;
  Refinement refinement;
  double error = 0;
};

}  // namespace

TEST_CASE("refining brings the layer's output nearer to the original's and keeps all scales") {
  const Refined refined(60, 1);
  CHECK(refined.refinement.error_after < 0.9 * refined.refinement.error_before);
  // the measured weights are those that the codes stand for
  CHECK(refined.error == doctest::Approx(refined.refinement.error_after).epsilon(1e-4));
  int64_t changed = 0;
  for (std::size_t i = 0; i < refined.modules.size(); i++) {
    const Solution& result = refined.modules[i];
    const QuantizedMatrix& before = refined.solved[i].matrix;
    CHECK(result.matrix.group_params == before.group_params);
    changed += result.matrix.codes != before.codes ? 1 : 0;
    const at::Tensor weight = refined.layer->weight(*result.planned->module);
    CHECK_FALSE(weight.requires_grad());
    CHECK(at::tensor(refined.format->dequantize(result.matrix)).equal(weight.flatten()));
  }
  CHECK(changed > 10);
}

TEST_CASE("the same seed gives the same codes, another seed may not") {
  const Refined a(10, 1), b(10, 1), c(10, 2);
  bool other = false;
  for (std::size_t i = 0; i < a.modules.size(); i++) {
    CHECK((a.modules[i].matrix.codes == b.modules[i].matrix.codes));
    other = other || a.modules[i].matrix.codes != c.modules[i].matrix.codes;
  }
  CHECK(other);
}

TEST_CASE("modules without tokens keep their solved codes") {
  const Refined refined(5, 1, /*met=*/false);
  REQUIRE(refined.modules.size() == 3);
  CHECK(refined.refinement.error_after == refined.refinement.error_before);
  for (std::size_t i = 0; i < refined.modules.size(); i++)
    CHECK((refined.modules[i].matrix.codes == refined.solved[i].matrix.codes));
}

TEST_CASE("if no step helps, the solved codes stay") {
  const Refined refined(1, 3);  // one step moves every weight by half a cell
  CHECK(refined.refinement.error_after == refined.refinement.error_before);
  for (std::size_t i = 0; i < refined.modules.size(); i++)
    CHECK((refined.modules[i].matrix.codes == refined.solved[i].matrix.codes));
}

}  // namespace aqhost
