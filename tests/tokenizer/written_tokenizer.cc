#include "written_tokenizer.h"

#include <unistd.h>

#include <filesystem>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// A folder for the time of one load; tests may run side by side.
struct Folder {
  fs::path path = fs::temp_directory_path() / fmt::format("aqhost-tokenizer-test-{}", getpid());
  Folder() { fs::create_directory(path); }
  ~Folder() { fs::remove_all(path); }
};

}  // namespace

Tokenizer load_written(std::string_view content) {
  const Folder folder;
  write_file(folder.path / "tokenizer.json", content);
  return Tokenizer::load(folder.path);
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
