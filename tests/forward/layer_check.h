#pragma once

#include <ATen/ATen.h>

#include "forward/distance.h"
#include "forward/fake_model.h"
#include "forward/layer.h"
#include "forward/reference.h"
#include "torch_doctest.h"

namespace aqhost {

inline constexpr int64_t kTokens = 11;
inline constexpr double kTolerance = 2e-6;  // float32 against float64
inline constexpr double kVisible = 1e-3;    // the minimum change by an option that has an effect

/// Hidden states of two sequences of kTokens.
inline at::Tensor input(const FakeModel& model) {
  at::manual_seed(3);
  return at::randn({2, kTokens, model.desc.hidden_size});
}

/// Runs the layer of a model, which is opened for it, on input().
inline at::Tensor run(FakeModel& fake) {
  const auto model = fake.open();
  return Layer(fake.source(), *model, 0, kTokens).forward(input(fake));
}

/// Checks that the layer with the option that `set` sets equals the reference, and differs from the
/// layer without it. `prepare` is done to both.
template <typename Set, typename Prepare = void (*)(FakeModel&)>
void check_option(
    const Set& set, const Prepare& prepare = [](FakeModel&) {}) {
  FakeModel plain, changed;
  prepare(plain);
  prepare(changed);
  set(changed);
  const at::Tensor without = run(plain), with = run(changed);
  CHECK(distance(without, reference_forward(plain, input(plain))) < kTolerance);
  CHECK(distance(with, reference_forward(changed, input(changed))) < kTolerance);
  CHECK(distance(with, without) > kVisible);
}

}  // namespace aqhost
