#include "run/exporter.h"

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
  exporter.write_dense();
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
  for (const char* name :
       {"chat_template.jinja", "modeling_x.py", "merges.txt", "spiece.model", "pytorch_model.bin",
        "README.md", "LICENSE", "LICENSE-MODEL.md", "quantization_report.json",
        "quantize_config.json", "other.safetensors.index.json"})
    write_file(open / "model" / name, std::string("content of ") + name);
  for (const char* folder : {"folder.json", "additional_chat_templates", ".cache", "other-model"})
    fs::create_directory(open / "model" / folder);
  for (const char* name : {"additional_chat_templates/tool.jinja", ".cache/x.json",
                           "other-model/config.json", "other-model/tokenizer.json"})
    write_file(open / "model" / name, "");
  open.quantize(open.plan(kRtn), "out");
  CHECK(names_in(open / "out") ==
        std::vector<std::string>{"LICENSE", "LICENSE-MODEL.md", "additional_chat_templates",
                                 "chat_template.jinja", "config.json", "merges.txt",
                                 "model.safetensors", "modeling_x.py", "quantization_report.json",
                                 "spiece.model", "tokenizer.json", "tokenizer_config.json"});
  CHECK(read_file(open / "out" / "merges.txt") == "content of merges.txt");
  CHECK(names_in(open / "out" / "additional_chat_templates") ==
        std::vector<std::string>{"tool.jinja"});
  const Json report = read_json(open / "out" / "quantization_report.json");
  CHECK(report["generator"] == "aqhost");
  CHECK(report["files"] ==
        Json({"LICENSE", "LICENSE-MODEL.md", "additional_chat_templates/tool.jinja",
              "chat_template.jinja", "config.json", "merges.txt", "model.safetensors",
              "modeling_x.py", "spiece.model", "tokenizer.json", "tokenizer_config.json",
              "quantization_report.json"}));
  CHECK(report["totals"]["bytes"].get<int64_t>() > 0);
  CHECK(report["totals"]["seconds"]["write"].get<double>() >= 0);
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
    CHECK(exporter.finish() > 0);
    exporter.commit(Json{{"generator", "aqhost"}});
  }
  CHECK(names_in(open / "") == std::vector<std::string>{"model", "out"});
}

TEST_CASE("a module that was never written fails the export, which leaves nothing") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Exporter exporter(open.reader(), open.model(), plan, open / "out", kOneFile, false);
    CHECK_THROWS_WITH_AS(exporter.finish(), doctest::Contains("was never written"), Error);
  }
  CHECK(names_in(open / "") == std::vector<std::string>{"model"});
}

void export_to(const OpenModel& open, const std::string& name, bool overwrite) {
  const Plan plan = open.plan(kRtn);
  Exporter exporter(open.reader(), open.model(), plan, open / name, kOneFile, overwrite);
  write_all(exporter, open, plan);
  exporter.finish();
  exporter.commit(Json{{"generator", "aqhost"}});
}

TEST_CASE("an earlier export is replaced where that is asked for, the user's files in it stay") {
  const OpenModel open;
  write_file(open / "model" / "old.jinja", "");
  export_to(open, "out", false);
  fs::remove(open / "model" / "old.jinja");
  write_file(open / "out" / "README.md", "my model card");
  write_file(open / "out" / "notes.txt", "mine");
  fs::create_directory(open / "out" / "plots");
  write_file(open / "out" / "plots" / "a.png", "mine");
  CHECK_THROWS_WITH_AS(export_to(open, "out", false), doctest::Contains("already exists"), Error);
  for (int i = 0; i < 2; i++) {
    export_to(open, "out", true);
    CHECK(names_in(open / "out") ==
          std::vector<std::string>{"README.md", "config.json", "model.safetensors", "notes.txt",
                                   "plots", "quantization_report.json", "tokenizer.json",
                                   "tokenizer_config.json"});
    CHECK(read_file(open / "out" / "README.md") == "my model card");
    CHECK(read_file(open / "out" / "plots" / "a.png") == "mine");
  }
}

TEST_CASE("a report of that name does not make an original an export") {
  OpenModel open;
  const fs::path copy = open / "copy";
  fs::copy(open.reader().directory(), copy);
  const std::string before = read_file(copy / "model.safetensors");
  const Plan plan = open.plan("{default: {group_size: 32, algorithm: rtn}}");
  for (const char* report : {"{}", "[]", "{\"generator\": \"aqhost\"}"}) {
    write_file(copy / "quantization_report.json", report);
    CHECK_THROWS_WITH_AS(Exporter(open.reader(), open.model(), plan, copy, int64_t{1} << 40, true),
                         doctest::Contains("is no earlier export of aqhost"), Error);
    CHECK(read_file(copy / "model.safetensors") == before);
  }
}

TEST_CASE("an export of version 0.1, whose report lists no files, is replaced as well") {
  const OpenModel open;
  export_to(open, "out", false);
  Json report = read_json(open / "out" / "quantization_report.json");
  report.erase("files");
  write_file(open / "out" / "quantization_report.json", report.dump());
  write_file(open / "out" / "model-00001-of-00002.safetensors", "a shard of that run");
  write_file(open / "out" / "notes.txt", "mine");
  export_to(open, "out", true);
  CHECK(!fs::exists(open / "out" / "model-00001-of-00002.safetensors"));
  CHECK(read_file(open / "out" / "notes.txt") == "mine");
}

TEST_CASE("--overwrite takes neither an original nor a folder of another kind") {
  const OpenModel open;
  fs::create_directory(open / "mine");
  write_file(open / "mine" / "thesis.tex", "");
  for (const char* name : {"model", "mine"})
    CHECK_THROWS_WITH_AS(export_to(open, name, true),
                         doctest::Contains("is no earlier export of aqhost"), Error);
  CHECK(fs::exists(open / "model" / "model.safetensors"));
  CHECK(fs::exists(open / "mine" / "thesis.tex"));
  for (const bool overwrite : {false, true}) {
    const std::string name = overwrite ? "empty-too" : "empty";
    fs::create_directory(open / name);
    export_to(open, name, overwrite);
    CHECK(fs::exists(open / name / "config.json"));
  }
}

TEST_CASE("a file of the user's under a name that the run writes is told before the run") {
  const OpenModel open;
  export_to(open, "out", false);
  write_file(open / "model" / "added.json", "the model's");
  write_file(open / "out" / "added.json", "mine");
  const Plan plan = open.plan(kRtn);
  CHECK_THROWS_WITH_AS(Exporter(open.reader(), open.model(), plan, open / "out", kOneFile, true),
                       doctest::Contains("out/added.json: was not written by an earlier run"),
                       Error);
  CHECK(read_file(open / "out" / "added.json") == "mine");
}

TEST_CASE("a side file that cannot be read is told before the run") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  const fs::path link = open / "model" / "special_tokens_map.json";
  fs::create_symlink("blob-that-is-gone", link);
  CHECK_THROWS_WITH_AS(
      Exporter(open.reader(), open.model(), plan, open / "out", kOneFile, false),
      doctest::Contains("special_tokens_map.json: is a link to blob-that-is-gone, which does not "
                        "exist"),
      Error);
  fs::remove(link);
  fs::create_directory(open / "model" / "sub");
  fs::create_symlink("/proc/self/mem", link);  // opens, and cannot be read
  CHECK_THROWS_WITH_AS(Exporter(open.reader(), open.model(), plan, open / "out", kOneFile, false),
                       doctest::Contains("special_tokens_map.json: Input/output error"), Error);
  CHECK(names_in(open / "") == std::vector<std::string>{"model"});
}

TEST_CASE("an export that cannot be put in place is kept, whole and readable") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Exporter exporter(open.reader(), open.model(), plan, open / "out", kOneFile, true);
    write_all(exporter, open, plan);
    exporter.finish();
    fs::create_directory(open / "out");
    write_file(open / "out" / "thesis.tex", "");
    CHECK_THROWS_WITH_AS(exporter.commit(Json::object()), doctest::Contains("out.part-1"), Error);
  }
  CHECK(names_in(open / "out") == std::vector<std::string>{"thesis.tex"});
  CHECK(Reader(open / "out.part-1").tensors().size() > 0);
  CHECK(fs::exists(open / "out.part-1" / "quantization_report.json"));
}

TEST_CASE("an export whose report cannot be written is kept but for that, and the error says so") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Exporter exporter(open.reader(), open.model(), plan, open / "out", kOneFile, false);
    write_all(exporter, open, plan);
    exporter.finish();
    fs::create_directory(open / "out.part-1" / "quantization_report.json");
    CHECK_THROWS_WITH_AS(
        exporter.commit(Json::object()),
        doctest::Contains("quantization_report.json: Is a directory. The export, which is "
                          "finished but for this file, is kept in "),
        Error);
  }
  CHECK(Reader(open / "out.part-1").tensors().size() > 0);
}

TEST_CASE("an export that somebody deletes before it is in place is not said to be kept") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  Exporter exporter(open.reader(), open.model(), plan, open / "out", kOneFile, false);
  write_all(exporter, open, plan);
  exporter.finish();
  fs::remove_all(open / "out.part-1");
  CHECK_THROWS_WITH_AS(exporter.commit(Json::object()),
                       doctest::Contains("out.part-1, which no longer exists"), Error);
}

}  // namespace
}  // namespace aqhost
