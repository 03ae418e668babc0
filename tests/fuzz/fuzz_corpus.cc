// A file of texts or ids to calibrate on: refused with an Error, or windows of ids in the
// vocabulary. The first byte chooses the kind of file.

#include <cstdint>

#include "base/error.h"
#include "base/file.h"
#include "bytes.h"
#include "calibrate/corpus.h"
#include "check.h"
#include "temp_folder.h"

namespace {

using namespace aqhost;

constexpr int64_t kVocabulary = 2048, kLength = 4;

std::string name_of(char kind) {
  switch (kind) {
    case 'j':
      return "calib.jsonl";
    case 'n':
      return "calib.npy";
    case 's':
      return "calib.safetensors";
    default:
      return "calib.txt";
  }
}

/// A folder with the tokenizer of a small model.
const TempFolder& folder() {
  static const TempFolder made;
  static const bool filled = [] {
    put_file(made / "tokenizer.json", read_file(AQ_TESTS_DIR "/fuzz/corpus/tokenizer/olmoe-tiny"));
    return true;
  }();
  check(filled);
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  static CorpusReader reader(folder().path(), kVocabulary);
  Bytes input(data, size);
  const auto file = folder() / name_of(static_cast<char>(input.byte()));
  put_file(file, input.rest());
  try {
    const at::Tensor windows = reader.windows(file, kLength);
    check(!windows.ids.empty() && windows.ids.size() % kLength == 0);
    for (const int64_t id : windows.ids) check(id >= 0 && id < kVocabulary);
  } catch (const Error&) {
  }
  return 0;
}
