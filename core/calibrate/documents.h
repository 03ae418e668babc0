#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace aqhost {

/// The content of a file, or of a pipe (at most 4 GiB), without a UTF-8 byte order mark. An Error
/// names the path.
std::string read_calibration_file(const std::filesystem::path& path);

enum class CalibrationFile { kText, kJson, kNpy, kSafetensors };

/// Says what a file is by its content. The name matters only in one way: files called .npy,
/// .safetensors, .json, .jsonl or .ndjson, in upper or lower case, must contain what their name
/// says. Throws an Error for files that are neither text nor token ids (compressed files, Parquet,
/// pickles, CSV tables, ...), which says what the file is and what to do.
CalibrationFile recognise(std::string_view content, const std::filesystem::path& path);

/// A document of a JSON file: its text and its place ("a.jsonl:3", "a.json[2]").
struct JsonDocument {
  std::string text;
  std::string where;
  bool chat = false;  // the text is that of all turns
  /// The turns of a chat for a chat template: objects with "role" and "content", whose text parts
  /// are joined, and whatever else they have.
  nlohmann::ordered_json messages{};
};

/// Calls body for every document, in order, of JSON lines, a JSON array or one JSON object. A
/// document is a string, an object with a string "text" or "content", or an object with a chat in
/// "messages" or "conversations". In the text, the turns of a chat are joined by an empty line,
/// which is for models without a chat template. Anything else is an Error that names the place.
void for_json_documents(std::string_view content, const std::filesystem::path& path,
                        const std::function<void(const JsonDocument& document)>& body);

}  // namespace aqhost
