// The checks of a checkpoint before any work, which are the same for every algorithm.

#include <cstring>
#include <functional>
#include <map>

#include "base/error.h"
#include "changed_checkpoint.h"
#include "export/autogptq.h"
#include "export/decoded_checkpoint.h"
#include "export/verify.h"
#include "measure/evaluate.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;
using doctest::Contains;

constexpr const char* kInt4 = "{default: {group_size: 16, algorithm: rtn}}";

/// A SmallModel on disk that a test changes before it is opened.
class Checkpoint {
 public:
  Checkpoint() { SmallModel().write(path()); }

  fs::path path() const { return folder_ / "model"; }
  fs::path out() const { return folder_ / "out"; }
  void change(const std::function<void(Tensors&)>& change) const { change_tensors(path(), change); }
  void configure(const char* key, const Json& value) const {
    change_config(path(), [&](Json& config) { config[key] = value; });
  }

  /// The message of the Error with which opening the model fails; "" if it does not fail.
  std::string opened() const {
    return said([](const Source& original) { registry().create_model(original, "auto"); });
  }
  /// The same for rounding it. A run that is refused must write nothing.
  std::string rounded(const Container& container = compressed_tensors()) const {
    const std::string text = said([&](const Source& original) {
      const auto model = registry().create_model(original, "auto");
      const char* recipe =
          &container == &autogptq()
              ? "{default: {group_size: 32, algorithm: rtn}, overrides: [{pattern: "
                "'*experts*', skip: true}]}"
              : kInt4;
      const Plan plan =
          make_plan(*model, Recipe::parse(recipe, "r.yaml"), registry(), "", container);
      QuantizeOptions options;
      options.target = out();
      quantize(original, *model, plan, options);
    });
    CHECK(fs::exists(out()) == text.empty());
    return text;
  }

 private:
  std::string said(const std::function<void(const Source&)>& work) const {
    try {
      const auto original = open_original(path(), registry());
      work(*original);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

  TempFolder folder_;
};

double perplexity_of(const fs::path& folder) {
  const auto source = open_source(folder, registry());
  const auto model = registry().create_model(*source, "auto");
  const at::Tensor windows = at::arange(128, at::kLong).view({2, 64}) * 13 % 2048;
  return perplexity(*source, *model, windows, {}).value;
}

/// One tensor of each kind that is not quantized.
const std::vector<std::string> kDense{"model.embed_tokens.weight",
                                      "model.norm.weight",
                                      "lm_head.weight",
                                      "model.layers.1.input_layernorm.weight",
                                      "model.layers.0.post_attention_layernorm.weight",
                                      "model.layers.1.self_attn.q_norm.weight",
                                      "model.layers.1.self_attn.k_norm.weight",
                                      "model.layers.0.mlp.gate.weight"};

/// Removes the last row of a bfloat16 tensor (or the last element of a vector), or appends a copy
/// of the first one.
void resize(std::pair<TensorInfo, std::string>& tensor, bool grow) {
  auto& [info, bytes] = tensor;
  const std::size_t row = bytes.size() / static_cast<std::size_t>(info.shape[0]);
  info.shape[0] += grow ? 1 : -1;
  if (grow)
    bytes += bytes.substr(0, row);
  else
    bytes.resize(bytes.size() - row);
}

}  // namespace

TEST_CASE(
    "a tensor that is missing, or has another shape or no float type, is refused before any work") {
  const std::map<std::string, std::function<void(Tensors&, const std::string&)>> damages{
      {"missing", [](Tensors& t, const std::string& name) { t.erase(name); }},
      {"short", [](Tensors& t, const std::string& name) { resize(t.at(name), false); }},
      {"long", [](Tensors& t, const std::string& name) { resize(t.at(name), true); }},
      {"of one more dimension",
       [](Tensors& t, const std::string& name) {
         auto& shape = t.at(name).first.shape;
         shape.insert(shape.begin(), 1);
       }},
      {"flat",
       [](Tensors& t, const std::string& name) {
         auto& info = t.at(name).first;
         info.shape = info.shape.size() == 1 ? std::vector<int64_t>{info.numel(), 1}
                                             : std::vector<int64_t>{info.numel()};
       }},
      {"of integers",
       [](Tensors& t, const std::string& name) { t.at(name).first.dtype = DType::kI16; }},
  };
  std::vector<std::string> names = kDense;
  names.emplace_back("model.layers.1.self_attn.v_proj.weight");
  names.emplace_back("model.layers.0.mlp.experts.3.down_proj.weight");
  for (const std::string& name : names)
    for (const auto& [label, damage] : damages) {
      if (label == "missing" && name == "lm_head.weight") continue;  // tested below
      CAPTURE(name);
      CAPTURE(label);
      const Checkpoint checkpoint;
      checkpoint.change([&name, &damage = damage](Tensors& t) { damage(t, name); });
      CHECK(shown(checkpoint.opened()) == Contains(("tensor " + name).c_str()));
      CHECK(checkpoint.rounded() == checkpoint.opened());
    }
  const Checkpoint headless;
  headless.change([](Tensors& t) { t.erase("lm_head.weight"); });
  CHECK(shown(headless.rounded()) == Contains("lm_head.weight is missing"));
}

TEST_CASE("a dense tensor that is not finite is refused before any work") {
  for (const std::string& name : kDense)
    for (const char* value : {"\xc0\x7f", "\x80\xff"}) {  // NaN and -infinity
      CAPTURE(name);
      const Checkpoint checkpoint;
      checkpoint.change([&](Tensors& t) {
        std::string& bytes = t.at(name).second;
        std::memcpy(bytes.data() + bytes.size() - 2, value, 2);
      });
      CHECK(checkpoint.opened().empty());  // the header does not show it
      CHECK(shown(checkpoint.rounded()) == Contains(("tensor " + name + ": element").c_str()));
    }
}

TEST_CASE("a stored lm_head is used, whatever config.json says") {
  const Checkpoint checkpoint;
  const double untied = perplexity_of(checkpoint.path());
  checkpoint.configure("tie_word_embeddings", true);
  CHECK(perplexity_of(checkpoint.path()) == untied);
  REQUIRE(checkpoint.rounded().empty());
  // engines interpret such a config.json differently, so the export corrects it
  const Json config = read_json(checkpoint.out() / "config.json");
  CHECK(config["tie_word_embeddings"] == false);
  CHECK(config["quantization_config"]["ignore"].dump().find("\"lm_head\"") != std::string::npos);
  CHECK(verify(checkpoint.out(), registry()).modules == 32);
  const double exported = perplexity_of(checkpoint.out());
  checkpoint.configure("tie_word_embeddings", false);
  fs::remove_all(checkpoint.out());
  REQUIRE(checkpoint.rounded().empty());
  CHECK(perplexity_of(checkpoint.out()) == exported);
}

TEST_CASE("with tied embeddings, the export lists lm_head as dense although it has no tensor") {
  const Checkpoint checkpoint;
  checkpoint.change([](Tensors& t) { t.erase("lm_head.weight"); });
  checkpoint.configure("tie_word_embeddings", true);
  REQUIRE(checkpoint.rounded().empty());
  const Json config = read_json(checkpoint.out() / "config.json");
  CHECK(config["tie_word_embeddings"] == true);
  CHECK(config["quantization_config"]["ignore"] ==
        Json{"model.layers.0.mlp.gate", "model.layers.1.mlp.gate", "lm_head"});
  CHECK(verify(checkpoint.out(), registry()).modules == 32);
}

TEST_CASE("tensors that the model does not know are copied and listed, but never run") {
  Checkpoint checkpoint;
  const double before = perplexity_of(checkpoint.path());
  const std::map<std::string, TensorInfo> extra{
      {"model.rotary_emb.inv_freq", {"", DType::kF32, {8}}},
      {"model.layers.0.self_attn.rotary_emb.inv_freq", {"", DType::kF32, {8}}},
      {"model.layers.0.self_attn.attn.k_scale", {"", DType::kF32, {}}},
      {"mtp.layers.0.fc.weight", {"", DType::kBF16, {4, 4}}},
      {"model.layers.2.mlp.gate.weight", {"", DType::kBF16, {4, 64}}},
      {"visual.blocks.0.attn.qkv.weight", {"", DType::kF8E4M3, {4, 4}}},
      {"visual.patch_embed.weight", {"", DType::kF32, {2, 2, 2}}},
      {"score.bias", {"", DType::kI64, {3}}},
      {"empty", {"", DType::kF32, {0, 5}}},
      {"scalar", {"", DType::kF64, {}}}};
  checkpoint.change([&extra](Tensors& t) {
    for (const auto& [name, info] : extra)
      t[name] = {info, std::string(static_cast<std::size_t>(info.nbytes()),
                                   '\xff')};  // NaN in every float type
  });
  const Reader reader(checkpoint.path());
  const auto model = registry().create_model(reader, "auto");
  CHECK(model->extra_tensors() ==
        std::vector<std::string>{"empty", "model.layers.2.mlp.gate.weight",
                                 "mtp.layers.0.fc.weight", "scalar", "score.bias",
                                 "visual.blocks.0.attn.qkv.weight", "visual.patch_embed.weight"});
  CHECK(perplexity_of(checkpoint.path()) == before);
  for (const Container* container : containers()) {
    if (&container->of_checkpoint() != container) continue;
    fs::remove_all(checkpoint.out());
    REQUIRE(checkpoint.rounded(*container).empty());
    const Reader written(checkpoint.out());
    for (const auto& [name, info] : extra) {
      CAPTURE(name);
      const TensorInfo* copy = written.find(name);
      REQUIRE(copy != nullptr);
      CHECK(copy->dtype == info.dtype);
      CHECK(copy->shape == info.shape);
      const bool same = written.bytes(name) == reader.bytes(name);
      CHECK(same);
    }
    CHECK(verify(checkpoint.out(), registry()).extra_tensors == model->extra_tensors());
    const Json config = written.config()["quantization_config"];
    const std::string dense =
        (container == &autogptq() ? config["dynamic"] : config["ignore"]).dump();
    // whatever may be a linear module of an engine's model class is listed as dense
    CHECK(dense.find("mtp") != std::string::npos);
    CHECK(dense.find("visual") != std::string::npos);
    CHECK(dense.find("patch_embed") == std::string::npos);
  }
}

TEST_CASE("a module whose weight is stored twice is refused") {
  const Checkpoint checkpoint;
  checkpoint.change([](Tensors& t) {
    const std::string mlp = "model.layers.0.mlp.experts.";
    for (const char* stack : {"gate_up_proj", "down_proj"}) {
      const bool down = stack == std::string("down_proj");
      const std::vector<int64_t> shape =
          down ? std::vector<int64_t>{4, 64, 48} : std::vector<int64_t>{4, 96, 64};
      t[mlp + stack] = {{"", DType::kBF16, shape}, std::string(2 * 4 * 64 * (down ? 48 : 96), 0)};
    }
  });
  CHECK(shown(checkpoint.opened()) ==
        Contains("is stored twice: as tensor model.layers.0.mlp.experts."));
}

TEST_CASE("a quantization_config that is null or empty does not make a checkpoint quantized") {
  for (const Json& none : {Json(), Json::object()}) {
    const Checkpoint checkpoint;
    checkpoint.configure("quantization_config", none);
    CHECK(perplexity_of(checkpoint.path()) > 1);
    CHECK(checkpoint.rounded().empty());
    CHECK(verify(checkpoint.out(), registry()).modules == 32);
  }
}

}  // namespace aqhost
