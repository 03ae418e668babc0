#include "export/gguf_model.h"

#include <doctest/doctest.h>

#include "base/file.h"
#include "export/all_plugins.h"
#include "export/decoded_checkpoint.h"
#include "export/gguf.h"
#include "export/gguf_convert.h"
#include "export/gguf_tokenizer.h"
#include "export/read_gguf.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

namespace fs = std::filesystem;

/// A copy of a small model, with changes of its config.json; null removes a key.
class ChangedModel {
 public:
  ChangedModel(const std::string& name, const Json& changes) {
    const fs::path from = fs::path(AQ_TESTS_DIR) / "models" / name;
    for (const auto& entry : fs::directory_iterator(from))
      fs::create_symlink(entry.path(), folder_ / entry.path().filename().string());
    Json config = read_json(from / "config.json");
    config.merge_patch(changes);
    fs::remove(folder_ / "config.json");
    write_file(folder_ / "config.json", config.dump());
  }
  const fs::path& path() const { return folder_.path(); }

  std::string refusal() const {
    return message_of([this] {
      const auto source = open_source(path(), all_plugins());
      const auto model = all_plugins().create_model(*source, "auto");
      describe_gguf(*source, *model, [](const Module&) { return nullptr; });
    });
  }

 private:
  TempFolder folder_;
};

/// The file that is made of a checkpoint.
ReadGguf written(const fs::path& checkpoint) {
  const TempFolder folder;
  const auto source = open_source(checkpoint, all_plugins());
  const auto model = all_plugins().create_model(*source, "auto");
  RunObserver silent;
  write_gguf(*source, *model, folder / "m.gguf", false, silent);
  CHECK(!fs::exists(folder / "m.gguf.part"));
  return ReadGguf(read_file(folder / "m.gguf"));
}

}  // namespace

TEST_CASE("rows of a head whose halves rotate are stored as neighbours") {
  GgufTensor tensor;
  tensor.swapped_heads = 2;
  std::vector<int64_t> rows;
  for (int64_t r = 0; r < 12; r++) rows.push_back(stored_row(tensor, 12, r));
  CHECK(rows == std::vector<int64_t>{0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11});
  tensor.swapped_heads = 0;
  CHECK(stored_row(tensor, 12, 7) == 7);
}

TEST_CASE("OLMoE: names, shapes and key-values as llama.cpp reads them") {
  const ReadGguf file = written(fs::path(AQ_TESTS_DIR) / "models/olmoe-tiny");
  const auto& value = file.value;
  CHECK(file.keys.front() == "general.architecture");
  CHECK(value.at("general.architecture") == "olmoe");
  CHECK(value.at("general.name") == "olmoe-tiny");
  CHECK(value.at("general.file_type") == 32);  // mostly BF16
  CHECK(value.at("olmoe.block_count") == 3);
  CHECK(value.at("olmoe.context_length") == 1024);
  CHECK(value.at("olmoe.feed_forward_length") == 128);
  CHECK(value.at("olmoe.expert_count") == 16);
  CHECK(value.at("olmoe.expert_used_count") == 4);
  CHECK(value.at("olmoe.rope.freq_base") == 10000);
  CHECK(value.at("olmoe.attention.layer_norm_rms_epsilon").get<double>() == doctest::Approx(1e-5));
  CHECK(file.tensor.size() == 39);
  CHECK(file.tensor.at("blk.2.ffn_down_exps.weight").dims == std::vector<int64_t>{128, 128, 16});
  CHECK(file.tensor.at("blk.2.ffn_down_exps.weight").type == 30);
  CHECK(file.tensor.at("blk.0.ffn_gate_inp.weight").type == 0);
  CHECK(file.tensor.at("blk.0.attn_q_norm.weight").dims == std::vector<int64_t>{128});
  CHECK(file.tensor.at("output.weight").dims == std::vector<int64_t>{128, 2048});

  CHECK(value.at("tokenizer.ggml.model") == "gpt2");
  CHECK(value.at("tokenizer.ggml.pre") == "gpt-2");
  CHECK(value.at("tokenizer.ggml.tokens").size() == 2048);
  CHECK(value.at("tokenizer.ggml.tokens")[2047] == "[PAD2047]");  // the tokenizer has 2046
  const Json& types = value.at("tokenizer.ggml.token_type");
  CHECK(std::vector<int>{types[0], types[2], types[2047]} == std::vector<int>{3, 1, 5});
  CHECK(value.at("tokenizer.ggml.merges")[0] == "\u0120 \u0120");
  CHECK(value.at("tokenizer.ggml.eos_token_id") == 0);
  CHECK(value.at("tokenizer.ggml.padding_token_id") == 1);
  CHECK(!value.contains("tokenizer.ggml.bos_token_id"));
  CHECK(value.at("tokenizer.ggml.add_bos_token") == false);
}

TEST_CASE("Mixtral: a tokenizer of SentencePiece's kind, whose scores are the ranks of merges") {
  const ReadGguf file = written(fs::path(AQ_TESTS_DIR) / "models/mixtral-tiny");
  const auto& value = file.value;
  CHECK(value.at("general.architecture") == "llama");
  CHECK(value.at("llama.attention.head_count_kv") == 2);
  CHECK(value.at("llama.rope.freq_base") == 1000000);
  CHECK(value.at("llama.attention.key_length") == 32);
  CHECK(value.at("tokenizer.ggml.model") == "llama");
  CHECK(value.at("tokenizer.ggml.add_bos_token") == true);
  CHECK(value.at("tokenizer.ggml.add_eos_token") == false);
  CHECK(value.at("tokenizer.ggml.bos_token_id") == 1);
  CHECK(value.at("tokenizer.ggml.unknown_token_id") == 0);
  CHECK(value.at("tokenizer.ggml.add_space_prefix") == true);
  const Json& types = value.at("tokenizer.ggml.token_type");
  CHECK(std::vector<int>{types[0], types[1], types[3], types[2047]} ==
        std::vector<int>{2, 3, 6, 1});
  std::map<std::string, float> score;
  const Json& tokens = value.at("tokenizer.ggml.tokens");
  for (std::size_t i = 0; i < tokens.size(); i++)
    score[tokens[i]] = value.at("tokenizer.ggml.scores")[i];
  CHECK(score.at("\u2581t") == 0);
  CHECK(score.at("he") == -1);
  CHECK(score.at("\u2581s") == -2);
}

TEST_CASE("the other families: what llama.cpp reads of shared experts and dense layers") {
  const auto qwen = written(fs::path(AQ_TESTS_DIR) / "models/qwen2-moe-tiny");
  CHECK(qwen.value.at("general.architecture") == "qwen2moe");
  CHECK(qwen.value.at("qwen2moe.expert_feed_forward_length") == 128);
  CHECK(qwen.value.at("qwen2moe.expert_shared_feed_forward_length") == 256);
  CHECK(qwen.value.at("tokenizer.ggml.pre") == "qwen2");
  CHECK(qwen.tensor.at("blk.0.ffn_gate_inp_shexp.weight").dims == std::vector<int64_t>{128});
  CHECK(qwen.tensor.at("blk.0.attn_q.bias").type == 0);
  const auto deepseek = written(fs::path(AQ_TESTS_DIR) / "models/deepseek-moe-tiny");
  CHECK(deepseek.value.at("general.architecture") == "deepseek");
  CHECK(deepseek.value.at("deepseek.leading_dense_block_count") == 1);
  CHECK(deepseek.value.at("deepseek.feed_forward_length") == 512);
  CHECK(deepseek.value.at("deepseek.expert_shared_count") == 2);
  CHECK(deepseek.value.at("deepseek.expert_weights_scale") == 1);
  CHECK(deepseek.value.at("tokenizer.ggml.pre") == "deepseek-llm");
  CHECK(deepseek.tensor.contains("blk.0.ffn_up.weight"));
  CHECK(deepseek.tensor.at("blk.1.ffn_up_shexp.weight").dims == std::vector<int64_t>{128, 256});
}

TEST_CASE("an option that llama.cpp does not have is refused by its name") {
  const auto refusal = [](const std::string& name, const Json& changes) {
    return ChangedModel(name, changes).refusal();
  };
  CHECK(refusal("olmoe-tiny", Json::object()).empty());
  CHECK(contains(refusal("olmoe-tiny", {{"norm_topk_prob", true}}),
                 "config.json: llama.cpp's architecture olmoe has no norm_topk_prob: true"));
  CHECK(contains(refusal("olmoe-tiny", {{"clip_qkv", 8.0}}), "clip_qkv"));
  CHECK(contains(refusal("mixtral-tiny", {{"sliding_window", 64}}), "sliding_window (64)"));
  CHECK(contains(refusal("mixtral-tiny", {{"hidden_act", "gelu"}}), "hidden_act"));
  Json yarn{{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 256}};
  const ReadGguf stretched =
      written(ChangedModel("deepseek-moe-tiny", {{"rope_scaling", yarn}}).path());
  CHECK(stretched.value.at("deepseek.rope.scaling.type") == "yarn");
  CHECK(stretched.value.at("deepseek.rope.scaling.factor") == 4);
  CHECK(stretched.value.at("deepseek.rope.scaling.original_context_length") == 256);
  CHECK(stretched.value.at("deepseek.rope.scaling.attn_factor").get<double>() ==
        doctest::Approx(1));
  CHECK(stretched.value.at("deepseek.rope.freq_base") == 10000);
  yarn["beta_slow"] = 2.0;  // llama.cpp does not read it
  CHECK(contains(refusal("deepseek-moe-tiny", {{"rope_scaling", yarn}}), "beta_slow 1"));
  const Json linear{{"rope_type", "linear"}, {"factor", 4.0}};
  CHECK(refusal("deepseek-moe-tiny", {{"rope_scaling", linear}}).empty());
  const ReadGguf scaled =
      written(ChangedModel("deepseek-moe-tiny", {{"rope_scaling", linear}}).path());
  CHECK(scaled.value.at("deepseek.rope.scaling.type") == "linear");
  CHECK(scaled.value.at("deepseek.rope.scaling.factor") == 4);
  CHECK(scaled.value.at("deepseek.rope.freq_base") == 10000);
}

TEST_CASE("a tokenizer that llama.cpp cannot follow is refused") {
  const TempFolder folder;
  const Json olmoe = read_json(fs::path(AQ_TESTS_DIR) / "models/olmoe-tiny/tokenizer.json");
  const auto refusal = [&](const Json& changes, int64_t vocab_size = 2048) {
    Json changed = olmoe;
    changed.merge_patch(changes);
    write_file(folder / "tokenizer.json", changed.dump());
    return message_of([&] { gguf_tokenizer(folder.path(), Json::object(), vocab_size); });
  };
  CHECK(contains(message_of([&] { gguf_tokenizer(folder.path(), Json::object(), 9); }),
                 "tokenizer.json: is missing"));
  CHECK(refusal(Json::object()).empty());
  CHECK(contains(refusal(Json::object(), 2000), "the id is 2"));
  CHECK(contains(refusal({{"model", {{"type", "Unigram"}}}}), "\"Unigram\" is not supported"));
  const Json other{{"type", "Split"},
                   {"pattern", {{"Regex", "\\d"}}},
                   {"behavior", "Isolated"},
                   {"invert", false}};
  CHECK(contains(refusal({{"pre_tokenizer", other}}), "is none of the pre-tokenizers"));
  write_file(folder / "chat_template.jinja", "{{ x }}");
  write_file(folder / "tokenizer.json", olmoe.dump());
  const GgufMetadata with_chat = gguf_tokenizer(folder.path(), Json::object(), 2048);
  CHECK(contains(with_chat.bytes(), "tokenizer.chat_template"));
  CHECK(contains(with_chat.bytes(), "{{ x }}"));
}

TEST_CASE("a GGUF file is made of a checkpoint, and is not one") {
  CHECK(&gguf().of_checkpoint() != &gguf());
  CHECK(contains(message_of([] { gguf().config({}); }), "does not read"));
  CHECK(contains(message_of([] {
                   container_of({{"quantization_config", {{"quant_method", "gguf"}}}}, "m");
                 }),
                 "expected \"compressed-tensors\" or \"gptq\""));
}

}  // namespace aqhost
