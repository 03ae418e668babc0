// How a fuzzer changes inputs that begin with JSON: half of the time in its structure, so that what
// comes of it is JSON of another shape, which changes of bytes seldom are. The next part, behind a
// zero byte, may be JSON too.

#include <algorithm>
#include <random>

#include "base/error.h"
#include "edit_json.h"

extern "C" std::size_t LLVMFuzzerMutate(uint8_t* data, std::size_t size, std::size_t most);

namespace {

/// `text` changed, or as it is where it is no JSON.
std::string changed(std::string_view text, std::minstd_rand& random) {
  std::array<uint8_t, 64> choices;
  for (uint8_t& choice : choices) choice = static_cast<uint8_t>(random() >> 8);
  Bytes bytes(choices.data(), choices.size());
  try {
    aqhost::Json json = aqhost::parse_json(text, "");
    aqhost::edit_json(json, bytes);
    return json.dump(-1, ' ', false, aqhost::Json::error_handler_t::replace);
  } catch (const aqhost::Error&) {
    return std::string(text);
  }
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned int seed) {
  std::minstd_rand random(seed);
  if (random() % 2 == 0) return LLVMFuzzerMutate(data, size, most);
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  std::size_t begin = 0;
  const std::size_t zero = all.find('\0');
  if (zero != std::string_view::npos && random() % 4 == 0) begin = zero + 1;
  const std::size_t end = std::min(all.find('\0', begin), size);
  std::string result(all.substr(0, begin));
  result.append(changed(all.substr(begin, end - begin), random)).append(all.substr(end));
  if (result.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::copy(result.begin(), result.end(), data);
  return result.size();
}
