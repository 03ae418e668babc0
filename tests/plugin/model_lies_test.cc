#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <map>

#include "plugin/registry.h"
#include "plugin/said.h"
#include "plugin/small_source.h"

namespace aqhost {
namespace {

/// Opens the model and routes three tokens in it.
void use_model(const Registry& registry, const std::string& id) {
  const SmallSource source;
  const auto model = registry.create_model(source, id);
  constexpr std::array<float, 12> kLogits{0, 1, 2, 3, 9, 8, 7, 6, 1, 4, 2, 3};
  std::array<int32_t, 6> ids{};
  std::array<float, 6> weights{};
  model->route({1, 3, kLogits, {}, {}, ids, weights});
  CHECK(ids == std::array<int32_t, 6>{3, 2, 0, 1, 1, 3});
}

/// What is said of each lie.
const std::map<std::string, std::string> kSaidOfModels{
    {"no-route", "a function that every adapter has is missing"},
    {"short-table", "a function that every adapter has is missing"},
    {"destroy-throws", "a function that every adapter has is missing"},
    {"describe-throws", "describe: it let an exception out, which the ABI forbids"},
    {"describe-fails", "describe: status 77 without a message"},
    {"no-layers", "describe: n_layers is 0, expected 1 to 65536"},
    {"layers-absurd", "describe: n_layers is 2147483647, expected"},
    {"hidden-negative", "describe: hidden_size is -8, expected 1 to 16777216"},
    {"vocab-absurd", "describe: vocab_size is 9223372036854775807, expected"},
    {"norm-unknown", "norm_kind 9 is not known"},
    {"eps-nan", "norm_eps is nan"},
    {"embedding-scale-infinite",
     "a scale of embeddings, of the residual or of logits is no number"},
    {"residual-scale-nan", "a scale of embeddings, of the residual or of logits is no number"},
    {"logit-scale-nan", "a scale of embeddings, of the residual or of logits is no number"},
    {"plus-one-of-layer-norm", "describe: norm_plus_one needs the norm_kind AQ_NORM_RMS"},
    {"attn-unknown", "layer 0: attention: kind 9 is not known"},
    {"heads-uneven", "layer 0: attention: 2 heads of 4, 3 for keys and values"},
    {"heads-zero", "layer 0: attention: n_heads is 0, expected 1 to 65536"},
    {"scale-nan", "layer 0: attention: a window, clip or scale is negative or no number"},
    {"clip-infinite", "layer 0: attention: a window, clip or scale is negative or no number"},
    {"rope-odd", "layer 0: attention: rope_dim 3 of heads of 4"},
    {"rope-null", "layer 0: attention: rope_dim 4 of heads of 4"},
    {"rope-infinite", "rope_inv_freq holds a number that is not finite"},
    {"gate-not-stored", "module layers.0.q is 8 x 8, the description makes it 16 x 8"},
    {"sinks-not-stored", "find_ref(layer 0, role 29, expert -1, part 0): there is no such tensor"},
    {"latent-not-stored", "no module for layer 0, role 23, expert -1, part 0, which its descript"},
    {"latent-without-values", "layer 0: attention: value_dim is 0, expected 1 to 65536"},
    {"latent-values-absurd", "attention: value_dim is 2147483647, expected 1 to 65536"},
    {"latent-without-rank", "layer 0: attention: kv_rank is 0, expected 1 to 16777216"},
    {"latent-rank-negative", "layer 0: attention: q_rank is -1, expected 1 to 16777216"},
    {"latent-all-rotates", "latent attention with 2 heads of 4, 4 of which rotate, and 2 for keys"},
    {"latent-none-rotates", "latent attention with 2 heads of 4, 0 of which rotate"},
    {"latent-keys-shared", "latent attention with 2 heads of 4, 2 of which rotate, and 1 for keys"},
    {"latent-eps-nan", "layer 0: attention: latent_eps nan"},
    {"latent-sinks", "output gate or sink needs the kind AQ_ATTN_STANDARD"},
    {"latent-window", "output gate or sink needs the kind AQ_ATTN_STANDARD"},
    {"delta-not-stored",
     "no module for layer 0, role 64, expert -1, part 0, which its description"},
    {"delta-without-values", "layer 0: attention: value_dim is 0, expected 1 to 65536"},
    {"delta-without-conv", "layer 0: attention: conv_size is 0, expected 1 to 1024"},
    {"delta-conv-absurd", "attention: conv_size is 2147483647, expected 1 to 1024"},
    {"delta-rotates", "layer 0: attention: the gated delta rule has no rope"},
    {"delta-sinks", "output gate or sink needs the kind AQ_ATTN_STANDARD"},
    {"delta-gate", "output gate or sink needs the kind AQ_ATTN_STANDARD"},
    {"act-unknown", "layer 0: ffn: activation 0 is not known"},
    {"topk-too-many", "layer 0: ffn: top 5 of 4 experts"},
    {"experts-absurd", "layer 0: ffn: n_experts is 2147483647, expected 1 to 65536"},
    {"groups-uneven", "layer 0: ffn: top 1 of 3 groups of 4 experts"},
    {"routed-scale-nan", "layer 0: ffn: routed_scale nan"},
    {"group-best-too-large", "layer 0: ffn: the sum of the 3 best scores of a group"},
    {"group-best-negative", "layer 0: ffn: the sum of the -1 best scores of a group"},
    {"norm-min-nan", "layer 0: ffn: norm_min nan"},
    {"clamp-at-zero", "layer 0: ffn: clamped SwiGLU with alpha 1.5 and limit 0"},
    {"clamp-alpha-nan", "layer 0: ffn: clamped SwiGLU with alpha nan and limit 7"},
    {"copied-prefix-null", "copied(0) gives no prefix, or nothing that says what it is"},
    {"copied-prefix-empty", "copied(0) gives no prefix, or nothing that says what it is"},
    {"copied-what-null", "copied(0) gives no prefix, or nothing that says what it is"},
    {"copied-without-end", "copied lists more than 1024 kinds of tensors"},
    {"copied-throws", "copied let an exception out: no list"},
    {"module-count-throws", "module_count let an exception out: who counts"},
    {"module-count-zero", "module_count is 0"},
    {"module-count-absurd", "module_count is 4294967295"},
    {"module-missing", "no module for layer -1, role 3, expert -1, part 0"},
    {"module-fails", "get_module(5): it let a C++ exception out, which the ABI forbids"},
    {"module-not-run", "module spare (layer -1, role 4103, expert -1, part 0) is in no layer"},
    {"module-custom-role-twice", "two modules have the key layer 0, role 4097, expert -1, part 0"},
    {"module-name-null", "module 5 has no name"},
    {"module-name-bytes", "module 5 has no name"},
    {"module-name-lines", "module 5 has no name"},
    {"module-name-twice", "two modules are named layers.0.q"},
    {"module-key-twice", "two modules have the key layer 0, role 33, expert 1, part 0"},
    {"module-layer-out", "has the key layer 2, role 33"},
    {"module-expert-out", "has the key layer 0, role 33, expert -7"},
    {"module-part", "has the key layer 0, role 33, expert 0, part 1"},
    {"module-order", "comes after layers.0.router, which belongs behind it"},
    {"module-shape", "module layers.0.experts.0.gate is 7 x 8, the description makes it 6 x 8"},
    {"module-size-zero",
     "module layers.0.experts.0.gate is 6 x 0, expected 1 to 16777216 features each"},
    {"module-tensor-null", "module layers.0.experts.0.gate has no tensor name"},
    {"module-tensor-other",
     "lies in layers.1.router.weight, but its key's tensor is "
     "layers.0.experts.0.gate.weight"},
    {"module-tensor-none", "small: tensor nowhere is missing"},
    {"module-rows-absurd", "lies at index -1, rows from 9223372036854775807"},
    {"module-rows-past", "tensor layers.0.experts.0.gate.weight is [6, 8]"},
    {"module-rows-part", "tensor layers.0.experts.0.gate.weight is [6, 8]"},
    {"module-index", "but its key's tensor is layers.0.experts.0.gate.weight"},
    {"module-transposed", "tensor layers.0.experts.0.gate.weight is [6, 8]"},
    {"input-group", "modules layers.0.q and layers.0.o share the input group 0"},
    {"name-not-inverse",
     "tensor norm.weight has the key layer -1, role 2, expert -1, part 0, whose "
     "tensor is embed.weight"},
    {"name-null", "has no tensor name"},
    {"key-not-inverse", "tensor layers.1.attn_norm.weight has the key layer 0"},
    {"key-unknown", "tensor layers.0.q.weight has another key than its module layers.0.q"},
    {"route-too-high", "route: token 0 goes to expert 4 of 4"},
    {"route-too-low", "route: token 0 goes to expert -2 of 4"},
    {"route-twice", "route: token 1 goes to expert 0 twice"},
    {"route-nan", "route: token 1 goes to expert 0 of 4 with weight nan"},
    {"route-negative", "route: token 1 goes to expert 0 with the weight -0.5, which may not be "},
    {"route-infinite", "route: token 0 goes to expert 3 of 4 with weight inf"},
    {"route-empty-weighs", "route: token 0 goes to expert -1 of 4 with weight 0."},
    {"route-throws", "route: it let a C++ exception out, which the ABI forbids"},
    {"route-nothing", "route: token 0 goes to expert 4 of 4"},
};

}  // namespace

TEST_CASE("every lie of a model is found, and the sentence names the file") {
  const std::filesystem::path file =
      std::filesystem::path(AQ_BUILD_DIR) / "tests/plugins-lying/lying-model.so";
  const Registry registry({file.parent_path()});
  CHECK(said([&] { use_model(registry, "honest"); }).empty());
  CHECK(registry.model_ids().size() == kSaidOfModels.size() + 1);
  for (const auto& [id, expected] : kSaidOfModels) {
    CAPTURE(id);
    [[maybe_unused]] const LeaksAllowed of_broken_tables;
    const std::string text = said([&, &id = id] { use_model(registry, id); });
    CHECK_MESSAGE(contains(text, expected), text);
    // of the checkpoint's own tensors the sentence names the checkpoint
    const bool of_file = contains(text, "small: tensor ");
    CHECK_MESSAGE((of_file || contains(text, "plugin " + file.string() + ": model \"" + id)), text);
  }
}

}  // namespace aqhost
