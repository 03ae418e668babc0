#include <fmt/format.h>

#include <fstream>
#include <iostream>

#include "base/error.h"
#include "base/json.h"
#include "command.h"
#include "tokenizer/tokenizer.h"

namespace aqhost {
namespace {

void add_options(po::options_description_easy_init add) {
  add("model", po::value<std::string>(), "folder with tokenizer.json");
  add("jsonl", po::value<std::string>(), "one JSON string a line; - is stdin");
  add("no-special-tokens", "leave out those that the tokenizer would add around a text");
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

void run(const po::variables_map& options) {
  const Tokenizer tokenizer = Tokenizer::load(required(options, "model"));
  const std::string path = required(options, "jsonl");
  const bool special = !options.contains("no-special-tokens");
  if (path == "-") return tokenize(tokenizer, std::cin, "stdin", special);
  std::ifstream file(path);
  if (!file) fail("{}: cannot be opened", path);
  tokenize(tokenizer, file, path, special);
}

}  // namespace

const Command kTokenize{
    "tokenize", "turns JSON strings into JSON arrays of token ids, line by line",
    "  aqhost tokenize --model DIR --jsonl FILE [--no-special-tokens]", add_options, run};

}  // namespace aqhost
