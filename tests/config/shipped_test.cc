#include <doctest/doctest.h>

#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "config/recipe.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

const fs::path kConfigs = fs::path(AQ_TESTS_DIR) / ".." / "configs";

/// The ```yaml and ```json blocks of a Markdown file, each with its first line's number.
std::vector<std::pair<int, std::string>> examples(const fs::path& path) {
  std::vector<std::pair<int, std::string>> found;
  std::istringstream text(read_file(path));
  bool inside = false;
  std::string line;
  for (int number = 1; std::getline(text, line); number++) {
    if (line.starts_with("```")) {
      inside = line == "```yaml" || line == "```json";
      if (inside) found.emplace_back(number + 1, "");
    } else if (inside) {
      found.back().second += line + "\n";
    }
  }
  return found;
}

TEST_CASE("every example in the guide is a recipe") {
  const auto found = examples(kConfigs / "README.md");
  CHECK(found.size() >= 5);
  for (const auto& [line, text] : found) {
    CAPTURE(line);
    CHECK_NOTHROW(Recipe::parse(text, "configs/README.md"));
  }
}

TEST_CASE("the guide explains every key") {
  const std::string guide = read_file(kConfigs / "README.md");
  for (const std::string text : {"qqqqqqqqqqqq: 1", "default: {qqqqqqqqqqqq: 1}"}) {
    std::string message;
    try {
      Recipe::parse(text, "r");
    } catch (const Error& e) {
      message = e.what();
    }
    const std::size_t known = message.find("known: ");
    REQUIRE(known != message.npos);
    std::istringstream keys(message.substr(known + 7));
    for (std::string key; std::getline(keys >> std::ws, key, ',');) {
      CAPTURE(key);
      CHECK((guide.find("`" + key + "`") != guide.npos ||
             guide.find("\n" + key + ": ") != guide.npos));
    }
  }
}

TEST_CASE("the settings that the guide shows are the defaults") {
  const RunSettings shown =
      Recipe::parse(examples(kConfigs / "README.md").at(3).second, "r").settings();
  const RunSettings usual;
  CHECK(shown.sequential == usual.sequential);
  CHECK(shown.actorder == usual.actorder);
  CHECK(shown.percdamp == usual.percdamp);
  CHECK(shown.error_feedback == usual.error_feedback);
  CHECK(shown.calibrate_all_experts == usual.calibrate_all_experts);
  CHECK(shown.strict == usual.strict);
}

TEST_CASE("README.md's examples are recipes") {
  const auto found = examples(kConfigs / ".." / "README.md");
  REQUIRE(found.size() == 2);
  for (const auto& [name, text] : found)
    CHECK(Recipe::parse(text, "README.md").resolve("model.layers.1.mlp.gate").skip);
}

TEST_CASE("what the guide says of its example is so") {
  const Recipe recipe = Recipe::parse(examples(kConfigs / "README.md").at(1).second, "r");
  CHECK(recipe.resolve("model.layers.0.mlp.experts.1.up_proj").wq == "int8");
  CHECK(recipe.resolve("model.layers.0.mlp.experts.1.up_proj").options["group_size"] == 64);
  CHECK(recipe.resolve("model.layers.1.mlp.experts.1.up_proj").wq == "mxfp4");
  CHECK(recipe.resolve("model.layers.0.self_attn.q_proj").wq == "int4");
}

TEST_CASE("every shipped recipe is one, and the guide names it") {
  const std::string guide = read_file(kConfigs / "README.md");
  int found = 0;
  for (const auto& entry : fs::directory_iterator(kConfigs)) {
    if (entry.path().extension() == ".md") continue;
    CAPTURE(entry.path().string());
    CHECK_NOTHROW(Recipe::load(entry.path()));
    CHECK(guide.find("`" + entry.path().filename().string() + "`") != guide.npos);
    found++;
  }
  CHECK(found > 0);
}

}  // namespace
}  // namespace aqhost
