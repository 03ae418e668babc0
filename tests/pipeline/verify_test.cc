#include "pipeline/verify.h"

#include <cstring>
#include <functional>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/writer.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

const std::string kQ = "model.layers.0.self_attn.q_proj";

/// Tensors of a checkpoint, to be changed.
using Tensors = std::map<std::string, std::pair<TensorInfo, std::string>>;

/// An export, rounded to int4 in groups of 16, that a test damages.
class Export {
 public:
  Export() { open_.quantize(open_.plan("{default: {group_size: 16, algorithm: rtn}}"), "out"); }

  void change_tensors(const std::function<void(Tensors&)>& change) const {
    Tensors tensors;
    {
      const Reader reader(path());
      for (const TensorInfo& info : reader.tensors()) {
        const auto bytes = reader.bytes(info.name);
        tensors[info.name] = {info, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
      }
    }
    change(tensors);
    fs::remove(path() / "model.safetensors");
    std::vector<TensorInfo> infos;
    for (const auto& [name, tensor] : tensors) {
      infos.push_back(tensor.first);
      infos.back().name = name;
    }
    Writer writer(path(), infos, int64_t{1} << 40);
    for (const auto& [name, tensor] : tensors)
      writer.write(name, std::as_bytes(std::span(tensor.second)));
    writer.finish();
  }

  void change_config(const std::function<void(Json&)>& change) const {
    Json config = read_json(path() / "config.json");
    change(config["quantization_config"]);
    write_file(path() / "config.json", config.dump());
  }

  fs::path path() const { return open_ / "out"; }
  const OpenModel& original() const { return open_; }

  doctest::String refused() const {
    try {
      verify(path(), registry());
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  }

 private:
  OpenModel open_;
};

using doctest::Contains;

TEST_CASE("a whole export is accepted and summed up") {
  const Export written;
  const VerifySummary summary = verify(written.path(), registry());
  CHECK(summary.model_type == "olmoe");
  CHECK(summary.modules == 2 * (4 + 4 * 3));
  CHECK(summary.weights == 2 * (4 * 64 * 64 + 4 * 3 * 48 * 64));
  CHECK(summary.bits_per_weight == 5.0);
  CHECK(summary.formats == std::map<std::string, int64_t>{{"int4", 32}});
}

TEST_CASE("an original is no export") {
  const OpenModel open;
  CHECK_THROWS_WITH_AS(verify(open / "model", registry()), Contains("is not quantized"), Error);
}

TEST_CASE("a packed tensor that is missing, of another type or shape is named") {
  const Export written;
  written.change_tensors([](Tensors& t) { t.erase(kQ + ".weight_scale"); });
  CHECK(written.refused() == Contains((kQ + ".weight_scale is missing").c_str()));

  const Export narrow;
  narrow.change_tensors([](Tensors& t) {
    auto& [info, bytes] = t[kQ + ".weight_packed"];
    info.shape[0]--;
    bytes.resize(bytes.size() - 4 * static_cast<std::size_t>(info.shape[1]));
  });
  CHECK(narrow.refused() == Contains((kQ + ".weight_packed is I32 [63, 8], format int4").c_str()));

  const Export typed;
  typed.change_tensors([](Tensors& t) { t[kQ + ".weight_scale"].first.dtype = DType::kI16; });
  CHECK(typed.refused() == Contains((kQ + ".weight_scale is I16 [64, 4], format int4").c_str()));
}

TEST_CASE("a weight_shape that lies is refused, however large") {
  for (const int64_t rows :
       {int64_t{63}, int64_t{0}, int64_t{-1}, int64_t{1} << 31, int64_t{1} << 62}) {
    CAPTURE(rows);
    const Export written;
    written.change_tensors([rows](Tensors& t) {
      std::memcpy(t[kQ + ".weight_shape"].second.data(), &rows, sizeof rows);
    });
    CHECK(written.refused() == Contains(kQ.c_str()));
  }
}

TEST_CASE("a module that the model needs is not there") {
  const Export written;
  written.change_tensors([](Tensors& t) {
    for (const char* part : {".weight_packed", ".weight_scale", ".weight_shape"})
      t.erase(kQ + part);
  });
  CHECK(written.refused() == Contains((kQ + ".weight is missing").c_str()));
}

TEST_CASE("a scale or a dense value that is not finite is named") {
  const Export written;
  written.change_tensors([](Tensors& t) {
    t[kQ + ".weight_scale"].second[11] = '\x7f';  // bfloat16 with all exponent bits
    t[kQ + ".weight_scale"].second[10] = '\xc0';
  });
  CHECK(written.refused() == Contains(kQ.c_str()));

  const Export dense;
  dense.change_tensors([](Tensors& t) {
    t["model.norm.weight"].second[1] = '\x7f';
    t["model.norm.weight"].second[0] = '\x80';
  });
  CHECK(dense.refused() == Contains("tensor model.norm.weight: element 0 is inf"));
}

TEST_CASE("a quantization_config that does not say what is stored is refused") {
  const auto refused = [](const std::function<void(Json&)>& change) {
    const Export written;
    written.change_config(change);
    return written.refused();
  };
  CHECK(refused([](Json& c) { c["ignore"].push_back(kQ); }) ==
        Contains((kQ + " is stored quantized, but quantization_config.ignore lists it").c_str()));
  CHECK(refused([](Json& c) { c["config_groups"]["group_0"]["targets"] = {kQ}; }) ==
        Contains("no group of quantization_config covers model.layers."));
  CHECK(refused([](Json& c) { c["config_groups"]["group_0"]["weights"]["num_bits"] = 7; }) ==
        Contains("group_0: no format plugin reads format"));
  CHECK(refused([](Json& c) { c["config_groups"]["group_0"]["weights"]["group_size"] = 32; }) ==
        Contains("down_proj.weight_scale is BF16 [64, 3], format int4 of a 64 x 48 matrix expects "
                 "BF16 [64, 2]"));
  CHECK(refused([](Json& c) {
          c["quant_method"] = "awq";
          c.erase("config_groups");
        }) == Contains("quant_method is \"awq\", expected \"compressed-tensors\""));
  CHECK(refused([](Json& c) { c.erase("config_groups"); }) ==
        Contains("config_groups is missing or no object"));
  CHECK(refused([](Json& c) { c = 3; }) == Contains("quantization_config"));
  CHECK(refused([](Json& c) { c["ignore"] = "lm_head"; }) ==
        Contains("quantization_config.ignore"));
}

TEST_CASE("a module that a group covers but that is stored dense is refused") {
  const Export written;
  written.change_tensors([&written](Tensors& t) {
    for (const char* part : {".weight_packed", ".weight_scale", ".weight_shape"})
      t.erase(kQ + part);
    const auto bytes = written.original().reader().bytes(kQ + ".weight");
    t[kQ + ".weight"] = {*written.original().reader().find(kQ + ".weight"),
                         {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
  });
  CHECK(written.refused() ==
        Contains((kQ + " is stored dense, but a group of quantization_config covers it").c_str()));
}

}  // namespace
}  // namespace aqhost
