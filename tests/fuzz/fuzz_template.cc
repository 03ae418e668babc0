// A chat template, up to a zero byte, and text of a chat for it: refused with an Error, or the same
// UTF-8 text each time.

#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/utf8.h"
#include "bytes.h"
#include "chat/template.h"
#include "check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace aqhost;
  Bytes input(data, size);
  const std::string source(input.until('\0')), said(input.rest());
  if (!is_utf8(said)) return 0;
  const auto message = [](const char* role, const std::string& text) {
    return nlohmann::ordered_json{{"role", role}, {"content", text}};
  };
  const nlohmann::ordered_json messages{message("system", "Be brief."), message("user", said),
                                        message("assistant", " <think>x</think> " + said)};
  try {
    const auto read = jinja::Template::parse(source, "fuzz");
    const std::string text =
        read.render({{"messages", jinja::from_json(messages)}, {"bos_token", jinja::Value("<s>")}});
    check(is_utf8(text));
  } catch (const Error&) {
  }
  return 0;
}
