#pragma once

#include <string>
#include <string_view>

namespace aqhost {

/// Ranges, as they stand in a PCRE2 class, of the characters that Unicode 15.0 to 16.0 gave the
/// general category (or major class, or script Han) `property`; empty for other properties.
/// Oniguruma as HF ships it knows them, PCRE2 10.42 is of Unicode 14.0.
std::string recent_characters(std::string_view property);

}  // namespace aqhost
