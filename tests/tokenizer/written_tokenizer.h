#pragma once

#include <string_view>

#include "base/json.h"
#include "tokenizer/tokenizer.h"

namespace aqhost {

/// What load() makes of a tokenizer.json with this content.
Tokenizer load_written(std::string_view content);

/// One of the small models' files as JSON.
Json model_file(const std::string& model);

/// The message of the Error that loading `content` ends in, from "tokenizer.json: " on; "" where it
/// loads.
std::string load_error(std::string_view content);

}  // namespace aqhost
