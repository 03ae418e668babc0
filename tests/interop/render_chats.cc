// Renders chats: for each line {"template": FILE, "messages": [...], tokens ...} of stdin, prints
// {"text": ...} or {"error": ...}.

#include <fmt/format.h>

#include <iostream>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "chat/template.h"

int main() {
  using namespace aqhost;
  for (std::string line; std::getline(std::cin, line);) {
    const auto given = nlohmann::ordered_json::parse(line);
    Json result;
    try {
      std::vector<std::pair<std::string, jinja::Value>> variables;
      for (const auto& [name, value] : given.items())
        variables.emplace_back(name, jinja::from_json(value));
      const auto file = given.at("template").get<std::string>();
      result["text"] = jinja::Template::parse(read_file(file), file).render(variables);
    } catch (const Error& e) {
      result["error"] = e.what();
    }
    fmt::print("{}\n", to_text(result));
  }
  return 0;
}
