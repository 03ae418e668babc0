// Faults of a checkpoint's files that are found before any work, and changes of them during a run.

#include <sys/stat.h>

#include <chrono>
#include <functional>
#include <map>

#include "base/error.h"
#include "changed_checkpoint.h"
#include "export/autogptq.h"
#include "measure/evaluate.h"
#include "run/exporter.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;
using doctest::Contains;

const std::string kDown = "model.layers.1.mlp.experts.3.down_proj";

/// A SmallModel on disk that a test changes, and the messages of opening, planning and rounding it.
class Changed {
 public:
  explicit Changed(const SmallModel& sizes = {}) { sizes.write(model()); }

  fs::path model() const { return folder_ / "model"; }
  fs::path out() const { return folder_ / "out"; }

  void add(const std::string& name, const TensorInfo& info, char byte = '\x3f') const {
    change_tensors(model(), [&](Tensors& tensors) {
      const auto bytes = static_cast<std::size_t>(info.nbytes());
      tensors[name] = {info, std::string(bytes, byte)};
    });
  }

  std::string opened() const { return said({}); }
  std::string planned(const std::string& recipe, const Container& container) const {
    return said([&](const Source& original, const Model& model) {
      plan_of(model, recipe, container);
      check_side_files(original);
    });
  }
  /// A run that is refused must write nothing.
  std::string rounded(const std::string& recipe, const Container& container) const {
    const std::string text = said([&](const Source& original, const Model& model) {
      QuantizeOptions options;
      options.target = out();
      quantize(original, model, plan_of(model, recipe, container), options);
    });
    CHECK(fs::exists(out()) == text.empty());
    return text;
  }

 private:
  static Plan plan_of(const Model& model, const std::string& recipe, const Container& container) {
    return make_plan(model, Recipe::parse(recipe, "r.yaml"), registry(), "", container);
  }
  std::string said(const std::function<void(const Source&, const Model&)>& work) const {
    try {
      const auto original = open_original(model(), registry());
      const auto model = registry().create_model(*original, "auto");
      if (work) work(*original, *model);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

  TempFolder folder_;
};

}  // namespace

TEST_CASE("a tensor with a name that the export needs for a module is refused before any work") {
  std::map<std::string, std::pair<std::string, const Container*>>
      suffixes;                                         // suffix -> recipe, container
  const SmallModel sizes{.hidden = 256, .inner = 256};  // divisible by the groups of every format
  const OpenModel clean(sizes);
  const auto collect = [&](const std::string& recipe, const Container& container) {
    for (const PlannedModule& m : clean.plan(recipe, "", container).modules)
      if (m.module->name == kDown)
        for (const TensorInfo& info : m.packed) suffixes.try_emplace(info.name, recipe, &container);
  };
  for (const std::string& id : registry().format_ids())
    collect(fmt::format("{{default: {{wq: {}, algorithm: rtn}}}}", id), compressed_tensors());
  collect("{default: {wq: nvfp4, aq: nvfp4, algorithm: rtn}}", compressed_tensors());
  collect("{default: {wq: int4, group_size: -1, algorithm: rtn}}", autogptq());
  suffixes.erase("weight");  // it replaces the original tensor
  CHECK(suffixes.size() >= 9);
  CHECK(suffixes.contains("qweight"));
  for (const auto& [suffix, plan] : suffixes) {
    const std::string name = kDown + "." + suffix;
    CAPTURE(name);
    const Changed changed(sizes);
    changed.add(name, {"", DType::kF32, {4}});
    for (const std::string& text :
         {changed.planned(plan.first, *plan.second), changed.rounded(plan.first, *plan.second)}) {
      CHECK(shown(text) == Contains(("model/model.safetensors: tensor " + name + " ").c_str()));
      CHECK(shown(text) == Contains("or delete the tensor"));
    }
  }
}

TEST_CASE("a tensor that a module of the model does not have by config.json is refused") {
  const std::map<std::string, std::vector<int64_t>> extra{
      {"model.layers.0.self_attn.q_proj.bias", {64}},
      {"model.layers.1.self_attn.o_proj.bias", {64}},
      {kDown + ".bias", {64}},
      {"model.layers.0.mlp.gate.bias", {4}},
      {"model.layers.0.mlp.gate.e_score_correction_bias", {4}},
      {"model.layers.0.input_layernorm.bias", {64}},
      {"model.norm.bias", {64}},
      {"lm_head.bias", {2048}},
      {kDown + ".weight_g_idx", {48}}};
  for (const auto& [name, shape] : extra) {
    CAPTURE(name);
    const Changed changed;
    changed.add(name, {"", DType::kBF16, shape});
    CHECK(shown(changed.opened()) == Contains(("model.safetensors: tensor " + name).c_str()));
    CHECK(shown(changed.opened()) == Contains("config.json"));
  }
  const Changed attention;
  attention.add("model.layers.0.self_attn.k_proj.bias", {"", DType::kBF16, {64}});
  CHECK(shown(attention.opened()) == Contains("attention_bias: false"));
  // with tied embeddings there is no module lm_head
  const Changed tied({.head = false});
  tied.add("lm_head.bias", {"", DType::kBF16, {2048}});
  CHECK(shown(tied.opened()) == Contains("tensor lm_head.bias"));
}

TEST_CASE("a bias of zeros, which old GPTQ writers add, changes nothing and is accepted") {
  const Changed changed;
  const std::string name = "model.layers.0.self_attn.q_proj.bias";
  changed.add(name, {"", DType::kBF16, {64}}, '\0');
  const Reader reader(changed.model());
  CHECK(registry().create_model(reader, "auto")->extra_tensors() == std::vector{name});
}

TEST_CASE(
    "an expert beyond the number in config.json is refused, and the message names that field") {
  for (const char* matrix : {"gate_proj", "up_proj", "down_proj"})
    for (const int expert : {4, 17}) {
      const std::string name =
          fmt::format("model.layers.0.mlp.experts.{}.{}.weight", expert, matrix);
      CAPTURE(name);
      const Changed changed;
      changed.add(name, {"", DType::kBF16, {48, 64}});
      CHECK(shown(changed.opened()) == Contains(("model.safetensors: tensor " + name).c_str()));
      CHECK(shown(changed.opened()) == Contains("num_experts: 4"));
    }
}

TEST_CASE("a tensor in a layer that the family does not know is refused, buffers are not") {
  for (const char* name :
       {"model.layers.1.mlp.some_new.weight", "model.layers.0.self_attn.sinks",
        "model.layers.1.some_scale", "model.layers.0.mlp.experts.1.extra_proj.weight"}) {
    CAPTURE(name);
    const Changed changed;
    changed.add(name, {"", DType::kBF16, {4}});
    const std::string expected = fmt::format("model.safetensors: tensor {} lies in layer ", name);
    CHECK(shown(changed.opened()) == Contains(expected.c_str()));
    CHECK(shown(changed.opened()) == Contains("but model \"olmoe\" does not know it"));
    CHECK(changed.rounded(kRtn, compressed_tensors()) == changed.opened());
  }
  const Changed buffers;
  for (const char* name :
       {"rotary_emb.inv_freq", "self_attn.rotary_emb.cos_cached", "attn.k_scale"})
    buffers.add(std::string("model.layers.0.") + name, {"", DType::kF32, {8}});
  CHECK(buffers.rounded(kRtn, compressed_tensors()).empty());
}

TEST_CASE("layers beyond those of config.json are accepted, and the warning counts them") {
  const Changed changed;
  changed.add("model.layers.2.mlp.experts.9.up_proj.weight", {"", DType::kBF16, {48, 64}});
  changed.add("model.layers.2.eh_proj.weight", {"", DType::kBF16, {64, 128}});
  changed.add("model.layers.3.self_attn.q_proj.bias", {"", DType::kBF16, {64}});
  changed.add("visual.layers.7.weight", {"", DType::kBF16, {64}});
  const Reader reader(changed.model());
  const auto model = registry().create_model(reader, "auto");
  CHECK(model->extra_tensors().size() == 4);
  CHECK(shown(model->extra_note()) == Contains("3 of them are in layers from 2 on"));
  CHECK(shown(model->extra_note()) == Contains("num_hidden_layers"));
  CHECK(OpenModel().model().extra_note().empty());
}

TEST_CASE("the run fails if another program replaces or rewrites a shard") {
  using Change = std::function<void(const fs::path& shard)>;
  const std::map<std::string, Change> changes{
      {"replaced",
       [](const fs::path& shard) {
         fs::copy_file(shard, shard.string() + ".new");
         fs::last_write_time(shard.string() + ".new", fs::last_write_time(shard));
         fs::rename(shard.string() + ".new", shard);
       }},
      {"rewritten",
       [](const fs::path& shard) {
         const std::string content = read_file(shard);
         std::FILE* file = std::fopen(shard.c_str(), "r+");
         std::fwrite(content.data(), 1, content.size(), file);
         std::fclose(file);
         fs::last_write_time(shard, fs::last_write_time(shard) + std::chrono::seconds(1));
       }},
      {"longer", [](const fs::path& shard) {
         const auto time = fs::last_write_time(shard);
         fs::resize_file(shard, fs::file_size(shard) + 8);
         fs::last_write_time(shard, time);
       }}};
  for (const auto& [label, change] : changes) {
    CAPTURE(label);
    const OpenModel open;
    const Plan plan = open.plan(kRtn);
    change(open / "model" / "model.safetensors");
    CHECK_THROWS_WITH_AS(
        open.quantize(plan, "out"),
        Contains("model/model.safetensors: the file was changed while it was in use"), Error);
    CHECK_FALSE(fs::exists(open / "out"));
    const at::Tensor windows = at::arange(64, at::kLong).view({1, 64});
    CHECK_THROWS_WITH_AS(perplexity(open.reader(), open.model(), windows, {}),
                         Contains("the file was changed"), Error);
  }
  const OpenModel
      same;  // changes that leave the content as it is: a second name, other permissions
  const fs::path shard = same / "model" / "model.safetensors";
  fs::create_hard_link(shard, same / "link");
  REQUIRE(::chmod(shard.c_str(), 0400) == 0);
  same.quantize(same.plan(kRtn), "out");
  CHECK(fs::exists(same / "out"));
  fs::remove(shard);  // the open file is still the one that is read
  same.quantize(same.plan(kRtn), "again");
  CHECK(fs::exists(same / "again"));
}

TEST_CASE("a side file in whose place a download left something else is refused before any work") {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
  for (const char* name :
       {"tokenizer_config.json", "generation_config.json", "chat_template.jinja", "tokenizer.model",
        "modeling_x.py", "vocab.txt", "LICENSE", "additional_chat_templates/tool.jinja"}) {
    CAPTURE(name);
    const Changed changed;
    fs::create_directories((changed.model() / name).parent_path());
    write_file(changed.model() / name, pointer);
    for (const std::string& text :
         {changed.planned(kRtn, compressed_tensors()), changed.rounded(kRtn, compressed_tensors())})
      CHECK(shown(text) == Contains((std::string(name) + ": is a Git LFS pointer").c_str()));
  }
  const Changed page;
  write_file(page.model() / "generation_config.json", "<!DOCTYPE html>");
  CHECK(shown(page.planned(kRtn, compressed_tensors())) ==
        Contains("generation_config.json: is a web page"));
  const Changed jinja;  // text of other kinds may begin like a web page
  write_file(jinja.model() / "chat_template.jinja", "<s>{{ messages[0].content }}");
  CHECK(jinja.rounded(kRtn, compressed_tensors()).empty());
}

}  // namespace aqhost
