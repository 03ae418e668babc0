#include <doctest/doctest.h>

#include <aq/sdk/names.hpp>
#include <climits>

namespace {

const aq::NameTable kTable({
    {AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, "embed.weight"},
    {AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, "layers.{L}.q.weight"},
    {AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, "layers.{L}.q.bias", AQ_PART_BIAS},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "layers.{L}.experts.{E}.up.weight"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_SHARED, "layers.{L}.shared.up.weight"},
});

std::string round_trip(const std::string& name) {
  const auto key = kTable.key(name);
  return key ? kTable.name(*key).value_or("(no name)") : "(no key)";
}

}  // namespace

TEST_CASE("key to name and back") {
  for (const int32_t layer : {0, 7, 10, 123456789, INT_MAX})
    for (const int32_t expert : {0, 9, 63, 1000000000, INT_MAX}) {
      const aq_tensor_key keys[] = {{-1, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, 0},
                                    {layer, AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, 1},
                                    {layer, AQ_ROLE_FFN_UP, expert, 0},
                                    {layer, AQ_ROLE_FFN_UP, AQ_EXPERT_SHARED, 0}};
      for (const aq_tensor_key& key : keys) {
        const auto name = kTable.name(key);
        REQUIRE(name);
        const auto back = kTable.key(*name);
        REQUIRE_MESSAGE(back, *name);
        CHECK(back->layer == key.layer);
        CHECK(back->role == key.role);
        CHECK(back->expert == key.expert);
        CHECK(back->part == key.part);
      }
    }
}

TEST_CASE("a name is taken as it would be written, or not at all") {
  CHECK(round_trip("layers.12.experts.3.up.weight") == "layers.12.experts.3.up.weight");
  for (const char* name :
       {"layers.012.q.weight", "layers.00.q.weight", "layers..q.weight", "layers.-1.q.weight",
        "layers.+1.q.weight", "layers. 1.q.weight", "layers.2147483648.q.weight",
        "layers.99999999999.q.weight", "layers.1.q.weight.", "layers.1.q.weigh", "layers.1",
        "layers.", "", "xlayers.1.q.weight", "layers.1.experts.{E}.up.weight", "layers.x.q.weight"})
    CHECK_MESSAGE(round_trip(name) == "(no key)", name);
}

TEST_CASE("keys that name nothing") {
  CHECK(!kTable.name({0, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, 0}));
  CHECK(!kTable.name({-2, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, 0}));
  CHECK(!kTable.name({-1, AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, 0}));
  CHECK(!kTable.name({0, AQ_ROLE_ATTN_Q, 0, 0}));
  CHECK(!kTable.name({0, AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, 0}));
  CHECK(!kTable.name({0, AQ_ROLE_ATTN_K, AQ_EXPERT_NONE, 0}));
  CHECK(!kTable.name({0, AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, 2}));
}
