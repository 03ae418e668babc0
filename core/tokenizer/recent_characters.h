#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace aqhost {

/// The characters that a property has in Unicode 16.0 but not in 14.0, as ranges in a PCRE2
/// character class. They are needed because Oniguruma as HF ships it has the tables of
/// Unicode 16.0, but PCRE2 10.42 has those of 14.0. `property` is the short name of a general
/// category or the name of a script. The result is nullopt for all other names, and for properties
/// that lost a character.
std::optional<std::string> recent_characters(std::string_view property);

}  // namespace aqhost
