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
#include "edit_json.h"
#include "tokenizer/tokenizer.h"

namespace {

using namespace aqhost;

constexpr std::array kFiles{"deepseek-moe-tiny", "mixtral-tiny", "olmoe-tiny", "qwen2-moe-tiny"};
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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  Bytes all(data, size);
  Json json = file_of(all.byte());
  for (std::size_t edits = all.byte() % 8; edits > 0; edits--) edit_json(json, all);
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
