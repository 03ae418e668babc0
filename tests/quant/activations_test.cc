#include "quant/activations.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "plugin/registry.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

ActivationRounder rounder_of(const std::string& id) {
  static const Registry registry({AQ_BUILD_DIR "/plugins"});
  return ActivationRounder(registry.create_format(id, {{"dynamic", true}}));
}

at::Tensor tokens() {
  at::manual_seed(3);
  return at::randn({6, 64}) * at::logspace(-2, 2, 6).unsqueeze(1);
}

}  // namespace

TEST_CASE("activations: a token is rounded by itself, whatever stands beside it") {
  const at::Tensor x = tokens();
  for (const char* id : {"int8", "fp8", "mxfp4", "mxfp6", "mxfp8"}) {
    CAPTURE(id);
    const ActivationRounder round = rounder_of(id);
    const at::Tensor all = round(x);
    CHECK(!all.equal(x));
    CHECK((all - x).abs().max().item<float>() < 0.3 * x.abs().max().item<float>());
    for (int64_t t = 0; t < x.size(0); t++) CHECK(round(x[t]).equal(all[t]));
    CHECK(round(x.view({2, 3, 64})).equal(all.view({2, 3, 64})));
    // the largest number of each token keeps its relative precision, whatever the token's size
    const at::Tensor error = (all - x).abs().amax(1) / x.abs().amax(1);
    CHECK(error.max().item<float>() < 0.26);
  }
}

TEST_CASE("activations: nvfp4's global scale is of all that was observed, or as it was set") {
  ActivationRounder observed = rounder_of("nvfp4"), set = rounder_of("nvfp4");
  const at::Tensor x = tokens();
  CHECK(observed.has_global());
  observed.observe(x.narrow(0, 0, 3));
  observed.observe(x.narrow(0, 3, 3));
  CHECK(observed.global() == 448.0f * 6 / x.abs().max().item<float>());
  set.set_global(observed.global());
  CHECK(set(x).equal(observed(x)));
  set.set_global(1);
  CHECK(!set(x).equal(observed(x)));
}

}  // namespace aqhost
