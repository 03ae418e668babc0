#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/observer.h"
#include "checkpoint/source.h"
#include "export/gguf_model.h"
#include "plugin/model.h"

namespace aqhost {

/// What a GGUF file contains.
struct GgufSummary {
  std::string architecture;
  std::map<std::string, int64_t> types;  // name -> number of tensors
  int64_t tensors = 0, bytes = 0;        // of all files
  std::vector<std::filesystem::path> files;
  GgufRounding rounding;
  std::vector<std::string> left_out;  // tensors of the checkpoint that the file does not contain
  double rounded_rope = 0;            // see GgufRope::rounded
  std::vector<std::string> notes;     // see GgufModel::notes
};

/// The same before the file is written: everything but `files` and `rounding`; `bytes` is that of
/// the tensors, and of the tokenizer if `has_tokenizer` is set. Throws the Errors of gguf_model(),
/// and then also those of gguf_tokenizer().
GgufSummary describe_gguf(const Source& source, const Model& model, const GgufFormatOf& format_of,
                          bool has_tokenizer = true);

/// Writes a checkpoint, which may be an export of any container, to a GGUF file. Everything that
/// can refuse it, but a scale that float16 cannot hold, does so before the file is created. The
/// file appears under its name when it is complete. With `max_file_bytes`, there may be several
/// (GgufFiles). One matrix is in memory at a time.
GgufSummary write_gguf(const Source& source, const Model& model, const std::filesystem::path& file,
                       bool overwrite, RunObserver& observer, int64_t max_file_bytes = 0);

/// What the user should know about rounded numbers in the file; "" if all are as they were.
std::string rounding_text(const GgufRounding& rounding);

}  // namespace aqhost
