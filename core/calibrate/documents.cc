#include "calibrate/documents.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/json.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

using namespace std::string_view_literals;

constexpr std::size_t kMaxBytes = std::size_t{1} << 32;
constexpr std::string_view kSpace = " \t\r\n";

/// A kind of file that cannot be read, recognised by its first bytes.
struct Foreign {
  std::string_view magic;
  const char* what;
  const char* advice;
};

constexpr const char* kUnpack =
    "unpack it first, or give a pipe that does, as in --calib <(zcat FILE)";
constexpr const char* kUntar =
    "unpack it and give the files in it, or a pipe of their content, as in --calib <(tar -xOf "
    "FILE)";
constexpr const char* kSaveIds = "save the ids with numpy.save (.npy) or as .safetensors";
constexpr const char* kToJson = "write its text column as JSON lines: an object with \"text\" each";

constexpr const char* kParquet =
    "write it as JSON lines, by python3 -c 'import pandas, sys; pandas.read_parquet(sys.argv[1])"
    ".to_json(\"FILE.jsonl\", orient=\"records\", lines=True)' FILE";

constexpr Foreign kForeign[] = {
    {"\x1f\x8b"sv, "compressed by gzip", kUnpack},
    {"\x28\xb5\x2f\xfd"sv, "compressed by zstd", kUnpack},
    {"\xfd\x37zXZ\0"sv, "compressed by xz", kUnpack},
    {"\x04\x22\x4d\x18"sv, "compressed by lz4", kUnpack},
    {"BZh91AY&SY"sv, "compressed by bzip2", kUnpack},
    {"7z\xbc\xaf\x27\x1c"sv, "a 7-Zip archive", kUnpack},
    {"PK\x03\x04"sv, "a zip archive (.npz and .pt files are, too)", kSaveIds},
    {"PK\x05\x06"sv, "an empty zip archive", kSaveIds},
    {"\x80\x02"sv, "a Python pickle (an old .pt file, perhaps)", kSaveIds},
    {"\x80\x03"sv, "a Python pickle", kSaveIds},
    {"\x80\x04"sv, "a Python pickle", kSaveIds},
    {"\x80\x05"sv, "a Python pickle", kSaveIds},
    {"PAR1"sv, "a Parquet file", kParquet},
    {"ARROW1"sv, "an Arrow file", kToJson},
    {"\xff\xff\xff\xff"sv, "an Arrow stream", kToJson},
    {"\x89HDF\r\n"sv, "an HDF5 file", kSaveIds},
    {"SQLite format 3\0"sv, "an SQLite database", kToJson},
    {"%PDF-"sv, "a PDF document", "extract its text"},
    {"\xff\xfe"sv, "text in UTF-16", "convert it to UTF-8, by iconv -f UTF-16 -t UTF-8"},
    {"\xfe\xff"sv, "text in UTF-16", "convert it to UTF-8, by iconv -f UTF-16 -t UTF-8"},
    {"version https://git-lfs.github.com/spec/"sv, "a Git LFS pointer, not the file itself",
     "fetch the file by git lfs pull"},
};

std::string lower_extension(const fs::path& path) {
  std::string end = path.extension().string();
  for (char& c : end)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return end;
}

/// Removes white space at the beginning; returns false if nothing is left.
bool skip_space(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
  return !text.empty();
}

/// Whether a text begins like a JSON object, or like an array of objects or strings.
bool begins_as_json(std::string_view text) {
  if (!skip_space(text)) return false;
  const bool array = text.front() == '[';
  if (array) {
    text.remove_prefix(1);
    if (!skip_space(text)) return false;
    if (text.front() == '"') return true;
  }
  if (text.front() != '{') return false;
  text.remove_prefix(1);
  return skip_space(text) && text.front() == '"';
}

/// Whether every line that is not blank is a JSON string and nothing else.
bool is_lines_of_strings(std::string_view text) {
  bool found = false;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    if (!skip_space(line)) continue;
    if (line.front() != '"' || !Json::accept(line)) return false;
    found = true;
  }
  return found;
}

bool is_safetensors(std::string_view content) {
  if (content.size() < 9 || content[8] != '{') return false;
  uint64_t length = 0;
  std::memcpy(&length, content.data(), sizeof length);
  return length <= content.size() - 8;
}

void refuse_binary(std::string_view content, const std::string& where) {
  for (const Foreign& f : kForeign)
    if (content.starts_with(f.magic))
      fail("{}: is {}; expected text, JSON lines or token ids: {}", where, f.what, f.advice);
  constexpr std::size_t kTarMagic = 257;  // position of the magic in a tar header
  if (content.size() > kTarMagic && content.substr(kTarMagic).starts_with("ustar"))
    fail("{}: is a tar archive; expected text, JSON lines or token ids: {}", where, kUntar);
  const std::size_t zero = content.substr(0, 1 << 16).find('\0');
  if (zero != content.npos)
    fail("{}: has a zero byte at offset {}, so it is no text; expected text, JSON lines or ids",
         where, zero);
}

/// The text of a turn in a chat: a string, or the texts in a list of parts.
std::string turn_text(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (content.is_null()) return {};  // a turn that only calls a tool
  std::string text;
  if (content.is_array())
    for (const Json& part : content)
      if (part.is_object() && part.contains("text") && part["text"].is_string())
        text += part["text"].get<std::string>();
  if (!text.empty() || content.is_array()) return text;
  fail("{}: the content of a turn is {}, expected a string", where, content.type_name());
}

std::string chat_text(const Json& turns, const std::string& where) {
  std::string text;
  for (const Json& turn : turns) {
    const char* key = turn.is_object() && turn.contains("content") ? "content" : "value";
    if (!turn.is_object() || !turn.contains(key))
      fail("{}: expected turns that are objects with \"content\" (or \"value\")", where);
    const std::string words = turn_text(turn[key], where);
    if (words.empty()) continue;
    if (!text.empty()) text += "\n\n";
    text += words;
  }
  return text;
}

/// The role of a turn: "role", or else "from" with the names that collections of chats have.
std::string role_of(const nlohmann::ordered_json& turn) {
  for (const char* key : {"role", "from"})
    if (const auto role = turn.find(key); role != turn.end() && role->is_string()) {
      const auto name = role->get<std::string>();
      return name == "human" ? "user" : name == "gpt" || name == "model" ? "assistant" : name;
    }
  return {};
}

/// The turns of a chat as templates expect them.
nlohmann::ordered_json messages_of(const nlohmann::ordered_json& turns, const std::string& where) {
  auto messages = nlohmann::ordered_json::array();
  for (nlohmann::ordered_json turn : turns) {
    nlohmann::ordered_json content = turn[turn.contains("content") ? "content" : "value"];
    if (content.is_array()) content = turn_text(Json(content), where);
    const std::string role = role_of(turn);
    turn.erase("from");
    turn.erase("value");
    turn["role"] = role;
    turn["content"] = std::move(content);
    messages.push_back(std::move(turn));
  }
  return messages;
}

/// Adds the messages of a chat, of which `ordered` is the JSON with its keys in order.
JsonDocument with_messages(JsonDocument document, const nlohmann::ordered_json& ordered) {
  for (const char* key : {"messages", "conversations"})
    if (const auto turns = ordered.find(key); turns != ordered.end() && turns->is_array()) {
      document.messages = messages_of(*turns, document.where);
      break;
    }
  return document;
}

JsonDocument document_of(const Json& json, const std::string& where) {
  if (json.is_string()) return {json.get<std::string>(), where};
  if (json.is_object()) {
    for (const char* key : {"text", "content"})
      if (const auto text = json.find(key); text != json.end() && text->is_string())
        return {text->get<std::string>(), where};
    for (const char* key : {"messages", "conversations"})
      if (const auto turns = json.find(key); turns != json.end() && turns->is_array())
        return {chat_text(*turns, where), where, true};
  }
  std::string found = json.type_name();
  if (json.is_object()) {
    found = json.empty() ? "an empty object" : "an object with";
    for (const auto& [key, value] : json.items()) found += fmt::format(" \"{}\"", key);
  }
  fail(
      "{}: expected an object with a string \"text\" (or \"content\"), or with a chat in "
      "\"messages\" or \"conversations\"; found {}",
      where, found);
}

std::string_view first_line(std::string_view content) {
  skip_space(content);
  return content.substr(0, content.find('\n'));
}

void for_lines(std::string_view content, const std::string& name,
               const std::function<void(const JsonDocument&)>& body) {
  for (int64_t number = 1; !content.empty(); number++) {
    check_interrupt();
    const std::string_view line = content.substr(0, content.find('\n'));
    content.remove_prefix(std::min(line.size() + 1, content.size()));
    if (line.find_first_not_of(kSpace) == line.npos) continue;
    const std::string where = fmt::format("{}:{}", name, number);
    JsonDocument document = document_of(parse_json(line, where), where);
    body(document.chat ? with_messages(std::move(document), nlohmann::ordered_json::parse(line))
                       : document);
  }
}

}  // namespace

std::string read_calibration_file(const fs::path& path) {
  struct Closed {
    int file;
    ~Closed() { ::close(file); }
  };
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0 && errno == ENOENT && path == "-")
    fail("-: there is no file of that name; standard input is called /dev/stdin");
  if (file < 0) fail("{}: {}", path.string(), std::strerror(errno));
  const Closed closed{file};
  std::string content;
  std::array<char, 1 << 16> piece;
  while (true) {
    check_interrupt();
    const ssize_t n = ::read(file, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EISDIR) fail("{}: is a folder, expected a file", path.string());
    if (n < 0) fail("{}: {}", path.string(), std::strerror(errno));
    if (n == 0) break;
    content.append(piece.data(), static_cast<std::size_t>(n));
    if (content.size() > kMaxBytes)
      fail("{}: more than 4 GiB; give a part of it, which is enough to calibrate on",
           path.string());
  }
  if (content.starts_with("\xef\xbb\xbf")) content.erase(0, 3);
  return content;
}

CalibrationFile recognise(std::string_view content, const fs::path& path) {
  const std::string end = lower_extension(path), where = path.string();
  if (end == ".npy" || content.starts_with("\x93NUMPY")) return CalibrationFile::kNpy;
  if (end == ".safetensors" || is_safetensors(content)) return CalibrationFile::kSafetensors;
  refuse_binary(content, where);
  if (end == ".json" || end == ".jsonl" || end == ".ndjson" || begins_as_json(content) ||
      is_lines_of_strings(content))
    return CalibrationFile::kJson;
  if (end == ".csv" || end == ".tsv")
    fail("{}: is a table; {}, or rename it to .txt if commas and quotes are to be read as text",
         where, kToJson);
  return CalibrationFile::kText;
}

void for_json_documents(std::string_view content, const fs::path& path,
                        const std::function<void(const JsonDocument&)>& body) {
  const std::string end = lower_extension(path), name = path.string();
  const std::string_view first = first_line(content);
  const bool lines = end == ".jsonl" || end == ".ndjson" || Json::accept(first);
  if (!first.starts_with('[') && lines) return for_lines(content, name, body);
  const Json all = parse_json(content, name);
  nlohmann::ordered_json ordered;  // read if there is a chat
  const auto pass_on = [&](JsonDocument document, const nlohmann::ordered_json::json_pointer& at) {
    if (document.chat && ordered.is_null()) ordered = nlohmann::ordered_json::parse(content);
    body(document.chat ? with_messages(std::move(document), ordered.at(at)) : document);
  };
  if (!all.is_array())
    return pass_on(document_of(all, name), nlohmann::ordered_json::json_pointer());
  for (std::size_t i = 0; i < all.size(); i++) {
    check_interrupt();
    const std::string where = fmt::format("{}[{}]", name, i);
    pass_on(document_of(all[i], where), nlohmann::ordered_json::json_pointer() / i);
  }
}

}  // namespace aqhost
