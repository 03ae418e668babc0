#include "run/refine.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <random>

#include "forward/fake_model.h"
#include "quant/formats.h"
#include "run/layer_walk.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

/// A layer of the fake model that is quantized to few bits and refined.
struct Refined {
  /// Not `met`: only an expert to which no token is routed is refined. If `comm` has several ranks,
  /// this is one of them, which has its part of the windows and of the modules.
  Refined(int64_t steps, uint64_t seed, bool met = true, int64_t batch = 4,
          Comm& comm = *Comm::alone()) {
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
      planned.recipe.refine_batch = batch;
      plan.modules.push_back(planned);
    }
    at::Tensor out = x.clone(), target = x.clone();
    LayerWalk(
        plan, 0, *layer, 1 << 30, 0, *Comm::alone(),
        [this](std::vector<Solution> more) {
          std::move(more.begin(), more.end(), std::back_inserter(modules));
        },
        timer)
        .run(out, target);
    for (std::size_t i = modules.size(); i-- > 0;)
      if (static_cast<int>(i) % comm.size() != comm.rank())
        modules.erase(modules.begin() + static_cast<std::ptrdiff_t>(i));
    solved = modules;
    x = x.slice(0, comm.rank(), x.size(0), comm.size()).contiguous();
    target = target.slice(0, comm.rank(), target.size(0), comm.size()).contiguous();
    const RefineOptions options = refine_options(plan, 0, seed);
    at::Tensor after = x.clone();
    refinement = refine_layer(source, plan, 0, *layer, modules, after, target, options, comm);
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

/// A port below the range from which the kernel takes the ports of other tests' connections.
uint16_t free_port() {
  static std::mt19937 random(static_cast<unsigned>(getpid()));
  for (;;) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(15000 + random() % 15000));
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const bool is_free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    close(fd);
    if (is_free) return ntohs(address.sin_port);
  }
}

using Ranks = std::vector<std::unique_ptr<Refined>>;

/// What each of several ranks refines, by rank. They are threads of this process.
Ranks refine_over(int size, int64_t steps, int64_t batch) {
  const uint16_t port = free_port();
  std::vector<std::future<std::unique_ptr<Refined>>> running;
  for (int rank = 0; rank < size; rank++)
    running.push_back(std::async(std::launch::async, [=] {
      const c10::AutoGradMode no_gradients(false);  // as in the program
      const World world{rank, size, rank, "127.0.0.1", port, false, ""};
      const auto comm = Comm::join(world, at::kCPU);
      auto refined = std::make_unique<Refined>(steps, 1, true, batch, *comm);
      comm->end();
      return refined;
    }));
  Ranks ranks;
  for (auto& refined : running) ranks.push_back(refined.get());
  return ranks;
}

}  // namespace

TEST_CASE("refining brings the layer's output nearer to the original's and keeps all scales") {
  const Refined refined(60, 1);
  CHECK(refined.refinement.error_after < 0.95 * refined.refinement.error_before);
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
  int negative = 0;  // in groups with negative scales, values fall as codes rise
  for (const Solution& module : refined.modules)
    for (const float scale : module.matrix.group_params) negative += scale < 0 ? 1 : 0;
  CHECK(negative > 10);
}

TEST_CASE("the same seed gives the same codes, another seed may not") {
  const Refined a(60, 1), b(60, 1), c(60, 2);
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

TEST_CASE("ranks choose the codes of one process if each step has all windows") {
  const Refined one(60, 1, true, 12);
  REQUIRE(one.refinement.error_after < 0.95 * one.refinement.error_before);
  for (const int size : {2, 3}) {
    CAPTURE(size);
    const Ranks ranks = refine_over(size, 60, 12);
    std::size_t modules = 0, codes = 0, differ = 0;
    for (const auto& rank : ranks) {
      CHECK(rank->refinement.error_before == doctest::Approx(one.refinement.error_before));
      CHECK(rank->refinement.error_after == ranks[0]->refinement.error_after);
      for (const Solution& own : rank->modules) {
        const auto same = [&](const Solution& s) {
          return s.planned->module->name == own.planned->module->name;
        };
        const auto expected = std::find_if(one.modules.begin(), one.modules.end(), same);
        REQUIRE(expected != one.modules.end());
        modules++;
        for (std::size_t i = 0; i < own.matrix.codes.size(); i++, codes++)
          differ += own.matrix.codes[i] != expected->matrix.codes[i] ? 1 : 0;
        // every rank has the new weights of all modules
        const at::Tensor weight = at::tensor(rank->format->dequantize(own.matrix));
        for (const auto& other : ranks)
          CHECK(other->layer->weight(*own.planned->module).flatten().equal(weight));
      }
    }
    CHECK(modules == one.modules.size());
    CHECK(differ < codes / 100);  // gradients near 0, whose sign depends on the order of the sum
    CHECK(ranks[0]->refinement.error_after ==
          doctest::Approx(one.refinement.error_after).epsilon(0.02));
  }
}

TEST_CASE("a rank that has no window in a step moves its weights all the same") {
  const Ranks ranks = refine_over(2, 120, 1);
  CHECK(ranks[0]->refinement.error_after < ranks[0]->refinement.error_before);
  CHECK(ranks[1]->refinement.error_after == ranks[0]->refinement.error_after);
}

}  // namespace aqhost
