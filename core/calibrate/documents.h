#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace aqhost {

/// The whole file, or all that comes out of a pipe (at most 4 GiB), without a byte order mark of
/// UTF-8. Error names the path.
std::string read_calibration_file(const std::filesystem::path& path);

enum class CalibrationFile { kText, kJson, kNpy, kSafetensors };

/// What a file is by its content; its name decides only where the content leaves it open: .npy,
/// .safetensors, .json, .jsonl and .ndjson, in any case, must hold what they are named for. Error
/// for what is neither text nor token ids (compressed files, Parquet, pickles, CSV tables, ...),
/// with what it is and what to do.
CalibrationFile recognise(std::string_view content, const std::filesystem::path& path);

/// A document of a JSON file: its text, and where it stands ("a.jsonl:3", "a.json[2]").
struct JsonDocument {
  std::string text;
  std::string where;
  bool chat = false;  // the text is that of all turns
};

/// Calls body for every document, in order, of JSON lines, a JSON array or one JSON object. A
/// document is a string, or an object with a string "text" or "content", or with a chat in
/// "messages" or "conversations". The turns of a chat are joined by an empty line; no chat template
/// is applied. Error, with the place, for anything else.
void for_json_documents(std::string_view content, const std::filesystem::path& path,
                        const std::function<void(const JsonDocument& document)>& body);

}  // namespace aqhost
