// Declares that the parts of nlohmann/json that cost the compiler most are instantiated once, in
// json_templates.cc. Every source file reads this first, from a precompiled header, and then has
// nothing to generate for them: about 2 s less per file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#ifndef AQ_JSON_TEMPLATES
#define AQ_JSON_TEMPLATES extern template
#endif

namespace nlohmann {
AQ_JSON_TEMPLATES class basic_json<>;
namespace detail {
AQ_JSON_TEMPLATES class serializer<json>;
AQ_JSON_TEMPLATES class lexer<json, iterator_input_adapter<std::string::const_iterator>>;
AQ_JSON_TEMPLATES class lexer<json, iterator_input_adapter<const char*>>;
AQ_JSON_TEMPLATES class parser<json, iterator_input_adapter<std::string::const_iterator>>;
AQ_JSON_TEMPLATES class parser<json, iterator_input_adapter<const char*>>;
}  // namespace detail
}  // namespace nlohmann
