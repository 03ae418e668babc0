// Compares with the outputs of the original implementations (tests/golden), in float32.

#include <cstring>
#include <sstream>

#include "base/error.h"
#include "checkpoint/reader.h"
#include "checkpoint/safetensors.h"
#include "forward/distance.h"
#include "forward/embedding_and_head.h"
#include "forward/layer.h"
#include "plugin/registry.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

class Golden {
 public:
  explicit Golden(const std::string& model) : file_("golden/" + model + ".safetensors") {}

  at::Tensor operator()(const std::string& name) const {
    for (const StoredTensor& stored : file_.tensors()) {
      if (stored.name != name) continue;
      const auto type = stored.dtype == DType::kF32   ? at::kFloat
                        : stored.dtype == DType::kI32 ? at::kInt
                                                      : at::kLong;
      at::Tensor out = at::empty(stored.shape, type);
      REQUIRE(out.nbytes() == static_cast<std::size_t>(stored.size));
      file_.read(stored, 0, {static_cast<std::byte*>(out.data_ptr()), out.nbytes()});
      return out;
    }
    fail("{} has no {}", file_.path().string(), name);
  }

 private:
  SafetensorsFile file_;
};

void check_routing(const Layer& layer, const at::Tensor& x, const Golden& golden,
                   const std::string& l) {
  const at::Tensor y = x + layer.attention(layer.attention_input(x));
  const Routing routing = layer.route(layer.ffn_input(y).flatten(0, 1));
  CHECK(distance(routing.logits, golden("router_logits." + l)) < 1e-4);
  CHECK(at::equal(routing.ids, golden("topk_ids." + l)));
  CHECK(at::allclose(routing.weights, golden("topk_weights." + l), 0, 1e-5));
}

void check_model(const std::string& name) {
  CAPTURE(name);
  const Golden golden(name);
  const Reader reader("models/" + name);
  const Registry registry({AQ_BUILD_DIR "/plugins"});
  const auto model = registry.create_model(reader, "auto");
  const OutputHead head(reader, *model);
  const at::Tensor ids = golden("input_ids");
  at::Tensor x = embed_tokens(reader, *model, ids);
  for (int32_t l = 0; l < model->desc().n_layers; l++) {
    CAPTURE(l);
    const Layer layer(reader, *model, l, ids.size(1));
    if (layer.ffn_desc().kind == AQ_FFN_MOE) check_routing(layer, x, golden, std::to_string(l));
    x = layer.forward(x);
    CHECK(distance(x[0], golden("hidden." + std::to_string(l))) < 1e-4);
  }
  CHECK(distance(head.logits(x)[0], golden("logits")) < 1e-4);
}

TEST_CASE("every family gives the original's hidden states, expert choices and logits") {
  std::istringstream models(AQ_GOLDEN_MODELS);
  int checked = 0;
  for (std::string name; models >> name; checked++) check_model(name);
  CHECK(checked > 0);
}

}  // namespace
}  // namespace aqhost
