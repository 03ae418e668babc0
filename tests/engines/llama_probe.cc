// What llama.cpp makes of a GGUF file, for test_llama_cpp.py, which compiles this with the
// llama.cpp that tools/test --engines has built. Ids and logits are 32 bits each, without a
// separator.
//   llama_probe FILE tokens < TEXT         writes the ids of a text
//   llama_probe FILE logits WINDOW < IDS   writes the logits [ids, vocabulary]; every WINDOW ids
//   are
//                                          a sequence of their own
//   llama_probe FILE greedy COUNT < IDS    continues the ids with the likeliest COUNT
#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "llama_probe: %s\n", what);
  std::exit(1);
}

template <typename T>
void put(const T* values, std::size_t count) {
  if (std::fwrite(values, sizeof(T), count, stdout) != count) fail("stdout: cannot be written");
}

std::string read_stdin() {
  std::string all;
  char part[4096];
  for (std::size_t n = 0; (n = std::fread(part, 1, sizeof part, stdin)) > 0;) all.append(part, n);
  return all;
}

/// A model, with room for one sequence. All that is not in the file is computed in float32.
class Probe {
 public:
  Probe(const char* file, uint32_t length) {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    model_ = llama_model_load_from_file(file, llama_model_default_params());
    if (model_ == nullptr) fail("the file was refused");
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = length;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context_ = llama_init_from_model(model_, params);
    if (context_ == nullptr) fail("there is no context");
  }
  ~Probe() {
    llama_free(context_);
    llama_model_free(model_);
  }
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  const llama_vocab* vocab() const { return llama_model_get_vocab(model_); }
  std::size_t vocab_size() const { return static_cast<std::size_t>(llama_vocab_n_tokens(vocab())); }

  void forget() { llama_memory_clear(llama_get_memory(context_), true); }

  /// Goes on with these ids. Returns the logits after each of them.
  const float* next(const llama_token* ids, int32_t count) {
    llama_batch batch = llama_batch_get_one(const_cast<llama_token*>(ids), count);
    std::vector<int8_t> wanted(static_cast<std::size_t>(count), 1);
    batch.logits = wanted.data();
    if (llama_decode(context_, batch) != 0) fail("llama_decode failed");
    return llama_get_logits(context_);
  }

 private:
  llama_model* model_;
  llama_context* context_;
};

void write_tokens(Probe& probe, const std::string& text) {
  std::vector<llama_token> ids(text.size() + 2);
  const int32_t count =
      llama_tokenize(probe.vocab(), text.data(), static_cast<int32_t>(text.size()), ids.data(),
                     static_cast<int32_t>(ids.size()), /*add_special=*/true,
                     /*parse_special=*/true);
  if (count < 0) fail("the text has more tokens than bytes");
  put(ids.data(), static_cast<std::size_t>(count));
}

void write_logits(Probe& probe, const std::vector<llama_token>& ids, std::size_t window) {
  for (std::size_t begin = 0; begin < ids.size(); begin += window) {
    const std::size_t count = std::min(window, ids.size() - begin);
    probe.forget();
    put(probe.next(ids.data() + begin, static_cast<int32_t>(count)), count * probe.vocab_size());
  }
}

void write_greedy(Probe& probe, const std::vector<llama_token>& ids, std::size_t count) {
  const float* logits = probe.next(ids.data(), static_cast<int32_t>(ids.size()));
  logits += (ids.size() - 1) * probe.vocab_size();
  for (std::size_t i = 0; i < count; i++) {
    const auto best =
        static_cast<llama_token>(std::max_element(logits, logits + probe.vocab_size()) - logits);
    put(&best, 1);
    logits = probe.next(&best, 1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 2 ? argv[2] : "";
  const bool tokens = what == "tokens";
  if (argc != (tokens ? 3 : 4) || (!tokens && what != "logits" && what != "greedy"))
    fail("usage: llama_probe FILE (tokens | logits WINDOW | greedy COUNT) < INPUT");
  const std::string input = read_stdin();
  if (tokens) {
    Probe probe(argv[1], 64);
    write_tokens(probe, input);
    return 0;
  }
  std::vector<llama_token> ids(input.size() / sizeof(llama_token));
  std::memcpy(ids.data(), input.data(), ids.size() * sizeof(llama_token));
  const std::size_t number = std::strtoul(argv[3], nullptr, 10);
  if (ids.empty() || number == 0) fail("there are no ids, or the number is 0");
  const std::size_t length = what == "logits" ? std::min(number, ids.size()) : ids.size() + number;
  Probe probe(argv[1], static_cast<uint32_t>(length));
  if (what == "logits")
    write_logits(probe, ids, number);
  else
    write_greedy(probe, ids, number);
}
