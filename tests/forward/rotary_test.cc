// The rotary embedding and norms by themselves, compared with their definitions in float64.

#include "forward/rotary.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "forward/distance.h"
#include "forward/fake_model.h"
#include "forward/norm.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

AttentionDesc rope_of(std::vector<float> frequencies, bool interleaved, float scale) {
  AttentionDesc desc;
  desc.rope_inv_freq = std::move(frequencies);
  desc.rope_interleaved = interleaved;
  desc.rope_scale = scale;
  return desc;
}

/// x [batch, tokens, heads, size] with each pair of features turned by its angle.
at::Tensor turned(const AttentionDesc& desc, const at::Tensor& x) {
  at::Tensor out = x.to(at::kDouble).clone();
  const auto half = static_cast<int64_t>(desc.rope_inv_freq.size());
  for (int64_t t = 0; t < x.size(1); t++)
    for (int64_t i = 0; i < half; i++) {
      const double angle = static_cast<double>(t) * desc.rope_inv_freq[static_cast<std::size_t>(i)];
      const int64_t first = desc.rope_interleaved ? 2 * i : i;
      const int64_t second = desc.rope_interleaved ? 2 * i + 1 : i + half;
      const at::Tensor a = x.select(1, t).select(2, first).to(at::kDouble),
                       b = x.select(1, t).select(2, second).to(at::kDouble);
      out.select(1, t).select(2, first).copy_(desc.rope_scale *
                                              (a * std::cos(angle) - b * std::sin(angle)));
      out.select(1, t).select(2, second).copy_(desc.rope_scale *
                                               (b * std::cos(angle) + a * std::sin(angle)));
    }
  return out;
}

}  // namespace

TEST_CASE("the first features of a head rotate, in pairs of halves or neighbours; the rest stay") {
  for (const bool interleaved : {false, true})
    for (const int64_t size : {6, 10})  // all of a head, and a part
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        CAPTURE(interleaved);
        CAPTURE(size);
        const AttentionDesc desc = rope_of({1.0f, 0.3f, 0.01f}, interleaved, 1.2f);
        const Rotary rotary(desc, 40, type);
        const at::Tensor x = at::randn({2, 33, 3, size}).to(type);
        const at::Tensor wanted = turned(desc, x);
        const double tolerance = type == at::kFloat ? 1e-6 : 6e-3;
        at::Tensor plain = x.clone();
        rotary(plain);
        CHECK(distance(plain, wanted) < tolerance);
        CHECK(plain.narrow(3, 6, size - 6).equal(x.narrow(3, 6, size - 6)));
        // with gradients, other operations do the same, and turn the gradient back
        at::Tensor weight = x.clone().requires_grad_();
        at::Tensor recorded = weight * 1;
        rotary(recorded);
        CHECK(distance(recorded.detach(), wanted) < tolerance);
        const at::Tensor direction = at::randn_like(x);
        (recorded * direction).sum().backward();
        at::Tensor again = weight.grad().clone();
        rotary(again);
        const at::Tensor expected =
            at::cat({direction.narrow(3, 0, 6) * 1.44, direction.narrow(3, 6, size - 6)}, 3);
        CHECK(distance(again, expected) < 3 * tolerance);
      }
}

TEST_CASE("without frequencies nothing rotates, and a sequence that is too long is refused") {
  const Rotary none(rope_of({}, false, 1), 8, at::kFloat);
  at::Tensor x = at::randn({1, 8, 2, 4});
  const at::Tensor before = x.clone();
  none(x);
  CHECK(x.equal(before));
  at::Tensor longer = at::randn({1, 9, 2, 4});
  CHECK_THROWS_WITH_AS(none(longer), "a sequence of 9 tokens, the layer was made for 8", Error);
}

TEST_CASE("a norm has the eps of the model or its own, and multiplies by w or by 1 + w") {
  for (const bool plus_one : {false, true})
    for (const float eps : {0.0f, 0.5f})
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        CAPTURE(plus_one);
        CAPTURE(eps);
        FakeModel fake;
        fake.desc.norm_plus_one = plus_one;
        fake.desc.norm_eps = 0.1f;
        const auto model = fake.open();
        const Norm norm(fake.source(), *model,
                        {0, AQ_ROLE_ATTN_NORM, AQ_EXPERT_NONE, AQ_PART_WEIGHT},
                        fake.desc.hidden_size, type, eps);
        const at::Tensor x = at::randn({5, 7, fake.desc.hidden_size}).to(type);
        const at::Tensor wide = x.to(at::kDouble);
        const at::Tensor weight =
            fake.tensor(AQ_ROLE_ATTN_NORM).to(at::kDouble) + (plus_one ? 1 : 0);
        const at::Tensor wanted =
            wide / (wide.square().mean(-1, true) + (eps > 0 ? eps : 0.1)).sqrt() * weight;
        const at::Tensor got = norm(x);
        CHECK((got.scalar_type() == type));
        CHECK(distance(got, wanted) < (type == at::kFloat ? 1e-6 : 5e-3));
      }
}

}  // namespace aqhost
