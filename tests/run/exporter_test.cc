#include "run/exporter.h"

#include "base/error.h"
#include "base/file.h"
#include "quant/quantize.h"
#include "small_model.h"
#include "tensor/tensor.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

constexpr int64_t kOneFile = int64_t{1} << 40;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// An unfinished export of a model, without the run that makes it resumable.
class Export {
 public:
  Export(const OpenModel& open, const Plan& plan, const fs::path& target, bool overwrite = false)
      : open_(open),
        plan_(plan),
        work_(target, replaced_files(open.reader(), target, overwrite)),
        exporter_(open.reader(), open.model(), plan, work_, kOneFile, silent_) {
    work_.check_replaceable(exporter_.files());
    exporter_.write_files();
  }

  void write_all() {
    for (int32_t unit = 0; unit < exporter_.units(); unit++) {
      exporter_.begin(unit);
      for (const PlannedModule& m : plan_.modules)
        if (m.format && m.module->key.layer == (unit == exporter_.units() - 1 ? -1 : unit))
          write(m);
      exporter_.finish(unit);
    }
  }
  Exporter& operator*() { return exporter_; }
  Exporter* operator->() { return &exporter_; }

 private:
  void write(const PlannedModule& m) {
    const at::Tensor weight = read_tensor(open_.reader(), m.module->weight,
                                          {m.module->out_features, m.module->in_features});
    exporter_.write(
        m,
        quantize_rtn(*m.format, weight.unsqueeze(0), {}, {}).matrix(0, 0, m.module->out_features),
        1);
  }

  const OpenModel& open_;
  const Plan& plan_;
  WorkFolder work_;
  RunObserver silent_;
  Exporter exporter_;
};

/// `names` and the names of the shards: one for each of two layers, one for the rest, and the
/// index.
std::vector<std::string> with_shards(std::vector<std::string> names) {
  for (const char* name : {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                           "model-00003-of-00003.safetensors", "model.safetensors.index.json"})
    names.emplace_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

TEST_CASE("side files that readers look for are copied; others and outdated ones are not") {
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
        with_shards({"LICENSE", "LICENSE-MODEL.md", "README.md", "additional_chat_templates",
                     "chat_template.jinja", "config.json", "merges.txt", "modeling_x.py",
                     "quantization_report.json", "report.html", "spiece.model", "tokenizer.json",
                     "tokenizer_config.json"}));
  CHECK(read_file(open / "out" / "merges.txt") == "content of merges.txt");
  CHECK(names_in(open / "out" / "additional_chat_templates") ==
        std::vector<std::string>{"tool.jinja"});
  const Json report = read_json(open / "out" / "quantization_report.json");
  CHECK(report["generator"] == "aqhost");
  std::vector<std::string> files = with_shards(
      {"LICENSE", "LICENSE-MODEL.md", "README.md", "additional_chat_templates/tool.jinja",
       "chat_template.jinja", "config.json", "merges.txt", "modeling_x.py", "report.html",
       "spiece.model", "tokenizer.json", "tokenizer_config.json"});
  files.emplace_back("quantization_report.json");
  CHECK(report["files"] == Json(files));
  CHECK(report["totals"]["bytes"].get<int64_t>() > 0);
  CHECK(report["totals"]["seconds"]["write"].get<double>() >= 0);
}

TEST_CASE("config.json keeps the order of its keys and gets a quantization_config") {
  const OpenModel open;
  open.quantize(open.plan(kRtn), "out");
  auto before = nlohmann::ordered_json::parse(read_file(open / "model" / "config.json"));
  auto after = nlohmann::ordered_json::parse(read_file(open / "out" / "config.json"));
  CHECK(after["quantization_config"]["format"] == "pack-quantized");
  after.erase("quantization_config");
  CHECK(after.dump() == before.dump());
}

TEST_CASE("the target does not exist before commit(), and nothing is left without commit()") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Export exported(open, plan, open / "out");
    exported.write_all();
    CHECK(!fs::exists(open / "out"));
    CHECK(names_in(open / "") == std::vector<std::string>{"model", "out.work"});
  }
  CHECK(names_in(open / "") == std::vector<std::string>{"model"});
  {
    Export exported(open, plan, open / "out");
    exported.write_all();
    CHECK(exported->bytes() > 0);
    exported->commit(RunReport());
  }
  CHECK(names_in(open / "") == std::vector<std::string>{"model", "out"});
}

TEST_CASE("a module that was never written fails its unit") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Export exported(open, plan, open / "out");
    exported->begin(0);
    CHECK_THROWS_WITH_AS(exported->finish(0), doctest::Contains("was never written"), Error);
  }
  CHECK(names_in(open / "") == std::vector<std::string>{"model"});
}

TEST_CASE("a unit's shard contains all tensors of its layer, and the last shard all others") {
  const OpenModel open;
  open.quantize(open.plan(kRtn), "out");
  for (const int layer : {0, 1}) {
    const SafetensorsFile shard(open / "out" /
                                fmt::format("model-{:05}-of-00003.safetensors", layer + 1));
    CHECK(shard.tensors().size() > 10);
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (const StoredTensor& t : shard.tensors()) CHECK(t.name.substr(0, prefix.size()) == prefix);
  }
  std::vector<std::string> rest;
  const SafetensorsFile last(open / "out" / "model-00003-of-00003.safetensors");
  for (const StoredTensor& t : last.tensors()) rest.push_back(t.name);
  CHECK(rest == std::vector<std::string>{"lm_head.weight", "model.embed_tokens.weight",
                                         "model.norm.weight"});
}

void export_to(const OpenModel& open, const std::string& name, bool overwrite,
               const std::string& card = "") {
  const Plan plan = open.plan(kRtn);
  Export exported(open, plan, open / name, overwrite);
  exported.write_all();
  exported->commit(RunReport(), card);
}

TEST_CASE("--overwrite replaces our model card, and neither one that was changed nor the user's") {
  const OpenModel open;
  const auto card = [&] { return read_file(open / "out" / "README.md"); };
  export_to(open, "out", false, "card 1");
  export_to(open, "out", true, "card 2");
  CHECK(card() == "card 2");
  write_file(open / "out" / "README.md", "card 2, edited");
  for (int i = 0; i < 2; i++) {
    export_to(open, "out", true, "card 3");
    CHECK(card() == "card 2, edited");
  }
  fs::remove(open / "out" / "README.md");
  export_to(open, "out", true, "card 4");
  CHECK(card() == "card 4");
}

TEST_CASE("--overwrite replaces an earlier export and keeps the user's files in it") {
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
          with_shards({"README.md", "config.json", "notes.txt", "plots", "quantization_report.json",
                       "report.html", "tokenizer.json", "tokenizer_config.json"}));
    CHECK(read_file(open / "out" / "README.md") == "my model card");
    CHECK(read_file(open / "out" / "plots" / "a.png") == "mine");
  }
}

TEST_CASE("a file with the name of the report does not make an original model an export") {
  OpenModel open;
  const fs::path copy = open / "copy";
  fs::copy(open.reader().directory(), copy);
  const std::string before = read_file(copy / "model.safetensors");
  const Plan plan = open.plan("{default: {group_size: 32, algorithm: rtn}}");
  for (const char* report : {"{}", "[]", "{\"generator\": \"aqhost\"}"}) {
    write_file(copy / "quantization_report.json", report);
    CHECK_THROWS_WITH_AS(Export(open, plan, copy, true),
                         doctest::Contains("is no earlier export of aqhost"), Error);
    CHECK(read_file(copy / "model.safetensors") == before);
  }
}

TEST_CASE("an export of version 0.1, whose report lists no files, is replaced as well") {
  const OpenModel open;
  export_to(open, "out", false);
  Json report = read_json(open / "out" / "quantization_report.json");
  report.erase("files");
  fs::remove(open / "out" / "report.html");  // that version wrote none
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

TEST_CASE("a file of the user with a name that the run writes is refused before the run") {
  const OpenModel open;
  export_to(open, "out", false);
  write_file(open / "model" / "added.json", "the model's");
  write_file(open / "out" / "added.json", "mine");
  const Plan plan = open.plan(kRtn);
  CHECK_THROWS_WITH_AS(Export(open, plan, open / "out", true),
                       doctest::Contains("out/added.json: was not written by an earlier run"),
                       Error);
  CHECK(read_file(open / "out" / "added.json") == "mine");
}

TEST_CASE("a side file that cannot be read is refused before the run") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  const fs::path link = open / "model" / "special_tokens_map.json";
  fs::create_symlink("blob-that-is-gone", link);
  CHECK_THROWS_WITH_AS(
      Export(open, plan, open / "out"),
      doctest::Contains("special_tokens_map.json: is a link to blob-that-is-gone, which does not "
                        "exist"),
      Error);
  fs::remove(link);
  fs::create_directory(open / "model" / "sub");
  fs::create_symlink("/proc/self/mem", link);  // it can be opened, but not read
  CHECK_THROWS_WITH_AS(Export(open, plan, open / "out"),
                       doctest::Contains("special_tokens_map.json: Input/output error"), Error);
  CHECK(names_in(open / "") == std::vector<std::string>{"model"});
}

TEST_CASE("an export that cannot be put in place is kept and can be read") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Export exported(open, plan, open / "out", true);
    exported.write_all();
    fs::create_directory(open / "out");
    write_file(open / "out" / "thesis.tex", "");
    CHECK_THROWS_WITH_AS(exported->commit(RunReport()), doctest::Contains("out.work/export"),
                         Error);
  }
  CHECK(names_in(open / "out") == std::vector<std::string>{"thesis.tex"});
  CHECK(Reader(open / "out.work/export").tensors().size() > 0);
  CHECK(fs::exists(open / "out.work/export/quantization_report.json"));
}

TEST_CASE("an export whose report cannot be written is kept, and the Error says what is missing") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  {
    Export exported(open, plan, open / "out");
    exported.write_all();
    fs::create_directory(open / "out.work/export/quantization_report.json");
    CHECK_THROWS_WITH_AS(
        exported->commit(RunReport()),
        doctest::Contains("quantization_report.json: Is a directory. The export, which is "
                          "finished but for this file, is kept in "),
        Error);
  }
  CHECK(Reader(open / "out.work/export").tensors().size() > 0);
}

TEST_CASE("if the work folder is deleted before commit(), the Error does not say that it is kept") {
  const OpenModel open;
  const Plan plan = open.plan(kRtn);
  Export exported(open, plan, open / "out");
  exported.write_all();
  fs::remove_all(open / "out.work");
  CHECK_THROWS_WITH_AS(exported->commit(RunReport()),
                       doctest::Contains("out.work: this folder was removed"), Error);
}

}  // namespace
}  // namespace aqhost
