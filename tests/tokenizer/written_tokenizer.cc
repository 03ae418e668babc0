#include "written_tokenizer.h"

#include "base/error.h"

namespace aqhost {

Tokenizer load_written(std::string_view content) {
  return Tokenizer::parse(content, "tokenizer.json");
}

Json model_file(const std::string& model) {
  return read_json("models/" + model + "/tokenizer.json");
}

std::string load_error(std::string_view content) {
  try {
    load_written(content);
    return "";
  } catch (const Error& error) {
    const std::string message = error.what();
    const size_t name = message.find("tokenizer.json");
    return name == message.npos ? "the file is not named: " + message : message.substr(name);
  }
}

}  // namespace aqhost
