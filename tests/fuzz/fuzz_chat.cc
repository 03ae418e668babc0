// A tokenizer.json of the size and shape that chat models have, changed in its structure, and text
// for it: refused with an Error, or ids in the vocabulary. The input says which file and how many
// edits, then the edits (what and where), then the text.

#include <array>
#include <cstdint>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "bytes.h"
#include "check.h"
#include "tokenizer/tokenizer.h"

namespace {

using namespace aqhost;

constexpr std::array kFiles{"deepseek-moe-tiny", "mixtral-tiny", "olmoe-tiny", "qwen2-moe-tiny"};
constexpr std::array<int64_t, 8> kNumbers{-1,        1,        255, 256, 2047, (1LL << 31) - 1,
                                          1LL << 32, INT64_MIN};

const Json& file_of(uint8_t number) {
  static const std::vector<Json> files = [] {
    std::vector<Json> read;
    for (const char* name : kFiles)
      read.push_back(
          read_json(std::string(AQ_TESTS_DIR "/fuzz/corpus/tokenizer/") + name + "-chat"));
    return read;
  }();
  return files[number % files.size()];
}

/// Some value inside `json`: one step down for each number, until one is a multiple of 4.
Json& inside(Json& json, Bytes& input) {
  Json* at = &json;
  while (at->is_structured() && !at->empty() && input.byte() % 4 != 0)
    at = &*std::next(at->begin(), static_cast<std::ptrdiff_t>(input.below(at->size())));
  return *at;
}

Json value_of(uint8_t kind, Json& json, Bytes& input) {
  switch (kind % 8) {
    case 0:
      return nullptr;
    case 1:
      return input.byte() % 2 == 0;
    case 2:
      return kNumbers[input.byte() % kNumbers.size()];
    case 3:
      return input.byte();
    case 4:
      return std::string(input.take(input.byte() % 32));
    case 5:
      return Json::array();
    case 6:
      return Json::object();
    default:
      return inside(json, input);  // a copy
  }
}

void edit(Json& json, Bytes& input) {
  const uint8_t what = input.byte();
  const Json value = value_of(static_cast<uint8_t>(what / 4), json, input);
  Json& at = inside(json, input);
  if (what % 4 == 0 && at.is_array()) {
    at.push_back(value);
  } else if (what % 4 == 1 && at.is_object()) {
    at[std::string(input.take(input.byte() % 32))] = value;
  } else if (what % 4 == 2 && at.is_structured() && !at.empty()) {
    at.erase(std::next(at.begin(), static_cast<std::ptrdiff_t>(input.below(at.size()))));
  } else {
    at = value;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  Bytes all(data, size);
  Json json = file_of(all.byte());
  for (std::size_t edits = all.byte() % 8; edits > 0; edits--) edit(json, all);
  const std::string text(all.rest());
  try {
    const Tokenizer tokenizer =
        Tokenizer::parse(json.dump(-1, ' ', false, Json::error_handler_t::replace), "fuzz");
    for (const int32_t id : tokenizer.encode(text, false))
      check(id >= 0 && id < tokenizer.vocab_size());
    tokenizer.encode(text, true);  // the template's ids are its own
  } catch (const Error&) {
  }
  return 0;
}
