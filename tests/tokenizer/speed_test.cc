#include <doctest/doctest.h>

#include <ctime>

#include "base/file.h"
#include "written_tokenizer.h"

namespace aqhost {
namespace {

/// Seconds of this thread that `work` takes.
template <typename Work>
double seconds(const Work& work) {
  const auto now = [] {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double start = now();
  work();
  return now() - start;
}

std::string repeated(const std::string& unit, int count) {
  std::string text;
  for (int i = 0; i < count; i++) text += unit;
  return text;
}

/// Far above what is measured (0.05 to 0.3 s), far below what quadratic work would take.
constexpr double kPathological = 5.0;

}  // namespace

TEST_CASE("long runs take time in proportion to their length") {
  const std::pair<const char*, std::string> texts[] = {
      {"letters", std::string(1 << 20, 'a')},
      {"spaces", std::string(1 << 20, ' ')},
      {"spaces before a letter", std::string(1 << 20, ' ') + "x"},
      {"line ends", std::string(1 << 20, '\n')},
      {"digits", std::string(1 << 20, '7')},
      {"beginnings of tokens", std::string(1 << 20, '<')},
      {"one letter under many marks", "a" + repeated("\u0301", 300000)},
      {"marks out of order", "a" + repeated("\u0301\u0327", 200000)},
      {"marks that are several", "a" + repeated("\u0f73", 200000)},
      {"SentencePiece spaces", repeated("\u2581", 300000)},
      {"letters without spaces", repeated("ab\u7684", 200000)},
  };
  for (const char* model : {"olmoe-tiny", "qwen2-moe-tiny", "mixtral-tiny", "deepseek-moe-tiny"}) {
    const Tokenizer tokenizer = Tokenizer::load(std::string("models/") + model);
    for (const auto& [name, text] : texts) {
      CAPTURE(std::string(model));
      CAPTURE(std::string(name));
      CHECK(seconds([&] { CHECK(!tokenizer.encode(text, false).empty()); }) < kPathological);
    }
  }
}

TEST_CASE("plain text is tokenized at more than 1 MB/s and a core") {
  const std::string text = read_file("data/kjv_calib.txt");
  for (const char* model : {"olmoe-tiny", "qwen2-moe-tiny", "mixtral-tiny", "deepseek-moe-tiny"}) {
    const Tokenizer tokenizer = Tokenizer::load(std::string("models/") + model);
    const double time = seconds([&] { CHECK(tokenizer.encode(text, false).size() > 50000); });
    const double rate = static_cast<double>(text.size()) / time / 1e6;
    MESSAGE(std::string(model) << ": " << rate << " MB/s");
    CHECK(rate > 1.0);
  }
}

TEST_CASE("a vocabulary of 100000 tokens loads quickly") {
  Json file = model_file("olmoe-tiny");
  Json& vocab = file["model"]["vocab"];
  Json& merges = file["model"]["merges"];
  const auto known = vocab.get<std::map<std::string, int32_t>>();
  auto next = static_cast<int32_t>(known.size());
  for (auto left = known.begin(); left != known.end() && next < 100000; ++left) {
    for (auto right = known.begin(); right != known.end() && next < 100000; ++right) {
      if (vocab.contains(left->first + right->first)) continue;
      vocab[left->first + right->first] = next++;
      merges.push_back({left->first, right->first});
    }
  }
  const std::string content = file.dump(1);
  const double time = seconds([&] { CHECK(load_written(content).vocab_size() >= 100000); });
  MESSAGE(time << " s");
  CHECK(time < 3.0);
}

}  // namespace aqhost
