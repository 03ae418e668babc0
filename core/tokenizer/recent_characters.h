#pragma once

#include <string>
#include <string_view>

namespace aqhost {

/// The characters to which Unicode 15.0 to 16.0 gave the general category (or major class, or
/// script Han) `property`, as ranges in a PCRE2 character class; empty for other properties. They
/// are needed because Oniguruma as HF ships it knows them, but PCRE2 10.42 has the tables of
/// Unicode 14.0.
std::string recent_characters(std::string_view property);

}  // namespace aqhost
