#include <fmt/format.h>

#include <fstream>
#include <iostream>

#include "base/error.h"
#include "base/json.h"
#include "command.h"
#include "tokenizer/tokenizer.h"

namespace aqhost {
namespace {

struct TokenizeOptions : CommandOptions {
  std::string model, lines;
  bool no_special_tokens = false;
};

void add_options(OptionTable& table, TokenizeOptions& options) {
  table
      .model("model", options.model, ModelPart::kTokenizer,
             "Read tokenizer.json in this folder, or of the model of this id (ORG/NAME) in the "
             "cache of the Hugging Face Hub.")
      ->required();
  table
      .text("jsonl", "FILE", options.lines,
            "Read JSON strings from this file, one per line; - means stdin.")
      ->required();
  table.flag("no-special-tokens", options.no_special_tokens,
             "Leave out the tokens that the tokenizer adds before and after a text.");
}

void tokenize(const Tokenizer& tokenizer, std::istream& lines, const std::string& name,
              bool special) {
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); number++) {
    const std::string where = fmt::format("{}:{}", name, number);
    const Json text = parse_json(line, where);
    if (!text.is_string()) fail("{}: expected a JSON string, found {}", where, text.type_name());
    try {
      fmt::print("{}\n", to_text(Json(tokenizer.encode(text.get<std::string>(), special))));
    } catch (const Error& e) {
      fail("{}: {}", where, e.what());
    }
  }
  if (lines.bad()) fail("{}: cannot be read", name);
}

void run(const TokenizeOptions& options) {
  const Tokenizer tokenizer = Tokenizer::load(options.model);
  const bool special = !options.no_special_tokens;
  if (options.lines == "-") return tokenize(tokenizer, std::cin, "stdin", special);
  std::ifstream file(options.lines);
  if (!file) fail("{}: cannot be opened", options.lines);
  tokenize(tokenizer, file, options.lines, special);
}

}  // namespace

const Command kTokenize{
    "tokenize", "turns JSON strings into JSON arrays of token ids, line by line",
    "tokenize --model MODEL --jsonl FILE [--no-special-tokens]",
    "One line is printed for each line that is read.", prepare<TokenizeOptions, add_options, run>};

}  // namespace aqhost
