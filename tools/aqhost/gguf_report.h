#pragma once

#include <string>

#include "base/json.h"
#include "export/gguf_convert.h"

namespace aqhost {

/// "olmoe, 36 tensors: 9 in Q4_0, 21 in F32 ...; 3.21 MB".
std::string summary_text(const GgufSummary& summary);

/// The name of the first file, and the number of the others.
std::string files_text(const GgufSummary& summary);

Json to_json(const GgufSummary& summary);

/// Warns about what the file does not contain, and what was rounded.
void warn_of_changes(const GgufSummary& summary, const std::string& directory);

}  // namespace aqhost
