#include "pipeline/exporter.h"

#include "base/error.h"
#include "base/file.h"
#include "quant/gptq.h"
#include "small_model.h"
#include "tensor/tensor.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

constexpr int64_t kOneFile = int64_t{1} << 40;
const std::string kRtn = "{default: {group_size: 16, algorithm: rtn}}";

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

void write_all(Exporter& exporter, const OpenModel& open, const Plan& plan) {
  for (const PlannedModule& m : plan.modules) {
    if (!m.format) continue;
    const at::Tensor weight = read_tensor(open.reader(), m.module->weight,
                                          {m.module->out_features, m.module->in_features});
    exporter.write(
        m,
        quantize_rtn(*m.format, weight.unsqueeze(0), {}, {}).matrix(0, 0, m.module->out_features),
        1);
  }
}

TEST_CASE("side files that readers look for are carried, others and stale ones are not") {
  const OpenModel open;
  for (const char* name : {"chat_template.jinja", "modeling_x.py", "merges.txt", "spiece.model",
                           "pytorch_model.bin", "README.md", "quantization_report.json",
                           "quantize_config.json", "other.safetensors.index.json"})
    write_file(open / "model" / name, std::string("content of ") + name);
  fs::create_directory(open / "model" / "folder.json");
  open.quantize(open.plan(kRtn), "out");
  CHECK(names_in(open / "out") ==
        std::vector<std::string>{"chat_template.jinja", "config.json", "merges.txt",
                                 "model.safetensors", "modeling_x.py", "quantization_report.json",
                                 "spiece.model", "tokenizer.json", "tokenizer_config.json"});
  CHECK(read_file(open / "out" / "merges.txt") == "content of merges.txt");
  CHECK(read_json(open / "out" / "quantization_report.json")["generator"] == "aqhost");
}

TEST_CASE("config.json keeps its keys in their order and gains quantization_config") {
  const OpenModel open;
  open.quantize(open.plan(kRtn), "out");
  auto before = nlohmann::ordered_json::parse(read_file(open / "model" / "config.json"));
  auto after = nlohmann::ordered_json::parse(read_file(open / "out" / "config.json"));
  CHECK(after["quantization_config"]["format"] == "pack-quantized");
  after.erase("quantization_config");
  CHECK(after.dump() == before.dump());
}

TEST_CASE("nothing stands at the target before commit(), and nothing is left without it") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Exporter exporter(open.reader(), open.model(), plan, open / "out", kOneFile, false);
    write_all(exporter, open, plan);
    CHECK(!fs::exists(open / "out"));
    CHECK(names_in(open / "").size() == 2);  // model, and the folder beside it
  }
  CHECK(names_in(open / "") == std::vector<std::string>{"model"});
  {
    Exporter exporter(open.reader(), open.model(), plan, open / "out", kOneFile, false);
    write_all(exporter, open, plan);
    CHECK(exporter.commit(Json::object()) > 0);
  }
  CHECK(names_in(open / "") == std::vector<std::string>{"model", "out"});
}

TEST_CASE("a module that was never written fails the export, which leaves nothing") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Exporter exporter(open.reader(), open.model(), plan, open / "out", kOneFile, false);
    CHECK_THROWS_WITH_AS(exporter.commit(Json::object()), doctest::Contains("was never written"),
                         Error);
  }
  CHECK(names_in(open / "") == std::vector<std::string>{"model"});
}

TEST_CASE("an earlier export is replaced where that is asked for, and nothing else ever") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  const auto export_to = [&](const std::string& name, bool overwrite) {
    Exporter exporter(open.reader(), open.model(), plan, open / name, kOneFile, overwrite);
    write_all(exporter, open, plan);
    exporter.commit(Json::object());
  };
  export_to("out", false);
  write_file(open / "out" / "left.txt", "");
  CHECK_THROWS_WITH_AS(export_to("out", false), doctest::Contains("already exists"), Error);
  export_to("out", true);
  CHECK(!fs::exists(open / "out" / "left.txt"));

  // the original itself, and a folder that holds something else
  fs::create_directory(open / "mine");
  write_file(open / "mine" / "thesis.tex", "");
  for (const char* name : {"model", "mine"})
    CHECK_THROWS_WITH_AS(export_to(name, true), doctest::Contains("is no earlier export of aqhost"),
                         Error);
  CHECK(fs::exists(open / "model" / "model.safetensors"));
  CHECK(fs::exists(open / "mine" / "thesis.tex"));
  fs::create_directory(open / "empty");
  export_to("empty", true);
}

}  // namespace
}  // namespace aqhost
