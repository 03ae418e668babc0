// A tokenizer.json: refused with an Error, or one whose ids are in the vocabulary.

#include <cstdint>

#include "base/error.h"
#include "check.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace aqhost;
  try {
    const Tokenizer tokenizer =
        Tokenizer::parse(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    const char* text = "In the beginning, it's  42 \xc3\xa9\n<s>";
    for (const int32_t id : tokenizer.encode(text, false))
      check(id >= 0 && id < tokenizer.vocab_size());
    tokenizer.encode(text, true);  // the template's ids are its own
  } catch (const Error&) {
  }
  return 0;
}
