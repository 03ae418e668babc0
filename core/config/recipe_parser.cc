#include <yaml-cpp/anchor.h>
#include <yaml-cpp/emitterstyle.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <cmath>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "base/nearest.h"
#include "base/pattern.h"
#include "base/utf8.h"
#include "config/recipe.h"

namespace aqhost {
namespace {

constexpr std::size_t kMaximumText = std::size_t{16} << 20;
constexpr int64_t kMaximumGroupSize = 1 << 20;

const std::vector<std::string> kTopKeys{"default",       "overrides", "sequential",
                                        "actorder",      "percdamp",  "min_tokens",
                                        "strict",        "comment",   "calibrate_all_experts",
                                        "error_feedback"};
const std::vector<std::string> kRowKeys{
    "wq",          "aq",        "group_size",    "symmetric", "element", "scale_rule",
    "scale_dtype", "algorithm", "routing_power", "refine",    "skip",    "comment"};

/// Stores the line in which a document begins.
struct DocumentStart : YAML::EventHandler {
  int line = 0;

  void OnDocumentStart(const YAML::Mark& mark) override { line = mark.line + 1; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

}  // namespace

/// Turns a YAML document (or JSON, which is YAML too) into a Recipe. Every error names file and
/// line.
class RecipeParser {
 public:
  explicit RecipeParser(std::string file) : file_(std::move(file)) {}

  Recipe parse(const std::string& text) {
    if (text.size() > kMaximumText)
      fail("{}: {} bytes are too many for a recipe, which has at most {}", file_, text.size(),
           kMaximumText);
    const YAML::Node root = load(text);
    if (!root.IsMap())
      fail("{}: expected a map with the keys default and overrides, found {}", file_, kind(root));
    check_keys(root, kTopKeys, "recipe");
    Recipe recipe;
    recipe.file_ = file_;
    recipe.text_ = text;
    if (const YAML::Node row = root["default"]) recipe.default_ = read_row(row, false);
    if (const YAML::Node rows = root["overrides"]) {
      if (!rows.IsSequence()) wrong(rows, "overrides", "a list");
      for (const YAML::Node& row : rows) recipe.add_override(read_row(row, true));
    }
    read_settings(root, recipe.settings_);
    return recipe;
  }

 private:
  /// The only document in the text.
  YAML::Node load(const std::string& text) const {
    refuse_what_is_no_text(text);
    try {
      refuse_second_document(text);
      return YAML::Load(text);
    } catch (const YAML::Exception& e) {
      fail("{}:{}: {}", file_, e.mark.line + 1, e.msg);
    }
  }

  /// Looks for at most two documents, because YAML::LoadAll() never ends if text follows that does
  /// not begin a document.
  void refuse_second_document(const std::string& text) const {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    DocumentStart start;
    if (parser.HandleNextDocument(start) && parser.HandleNextDocument(start))
      fail("{}:{}: the recipe has ended before, and this follows", file_, start.line);
  }

  /// YAML allows neither control characters (1.2, section 5.1) nor text that is not Unicode, and
  /// yaml-cpp takes 0x04 for the end of the text.
  void refuse_what_is_no_text(const std::string& text) const {
    std::istringstream lines(text);
    std::string line;
    for (int64_t number = 1; std::getline(lines, line); number++) {
      for (const char c : line) {
        const auto byte = static_cast<unsigned char>(c);
        if ((byte < 0x20 && c != '\t' && c != '\r') || byte == 0x7f)
          fail("{}:{}: the byte 0x{:02x} is no character of a text", file_, number, byte);
      }
      if (!is_utf8(line))
        fail("{}:{}: this line is not UTF-8; save the recipe in that encoding", file_, number);
    }
  }

  std::string at(const YAML::Node& node) const {
    return fmt::format("{}:{}", file_, node.Mark().line + 1);
  }

  static std::string kind(const YAML::Node& node) {
    if (node.IsScalar()) return fmt::format("\"{}\"", node.Scalar());
    return node.IsMap() ? "a map" : node.IsSequence() ? "a list" : "nothing";
  }

  [[noreturn]] void wrong(const YAML::Node& node, const std::string& key,
                          const std::string& expected) const {
    fail("{}: {} is {}, expected {}", at(node), key, kind(node), expected);
  }

  void check_keys(const YAML::Node& map, std::vector<std::string> known,
                  const std::string& what) const {
    std::set<std::string> seen;
    for (const auto& entry : map) {
      if (!entry.first.IsScalar()) wrong(entry.first, "a key of the " + what, "a word");
      const std::string& key = entry.first.Scalar();
      if (std::find(known.begin(), known.end(), key) == known.end())
        fail("{}: unknown key \"{}\" in the {}{}", at(entry.first), key, what,
             did_you_mean(key, known));
      if (!seen.insert(key).second) fail("{}: the key \"{}\" appears twice", at(entry.first), key);
    }
  }

  Recipe::Row read_row(const YAML::Node& node, bool is_override) const {
    const std::string what = is_override ? "override" : "default";
    if (!node.IsMap()) wrong(node, "an entry of " + what, "a map");
    std::vector<std::string> known = kRowKeys;
    if (is_override) known.push_back("pattern");
    check_keys(node, known, what);
    Recipe::Row row;
    row.where = at(node);
    if (is_override) read_pattern(node, row);
    for (const auto& entry : node) {
      const std::string& key = entry.first.Scalar();
      if (key == "comment" || key == "pattern") continue;
      row.keys[key] = read_key(key, entry.second);
      row.key_where[key] = at(entry.first);
      if (key == "wq") row.where = is_override ? row.where : at(entry.second);
    }
    if (is_override && row.keys.empty())
      fail(
          "{}: the override of the pattern \"{}\" sets nothing; give it a key (such as wq or skip) "
          "or remove it",
          row.where, row.pattern);
    return row;
  }

  void read_pattern(const YAML::Node& node, Recipe::Row& row) const {
    const YAML::Node pattern = node["pattern"];
    if (!pattern) fail("{}: an override without a pattern", at(node));
    row.pattern = word(pattern, "pattern");
    if (row.pattern.starts_with("re:"))
      row.regex = compile_regex(row.pattern.substr(3), at(pattern));
  }

  Json read_key(const std::string& key, const YAML::Node& node) const {
    if (key == "group_size") return group_size(node);
    if (key == "symmetric" || key == "skip") return flag(node, key);
    if (key == "routing_power") return number(node, key, 0, 4);
    if (key == "refine") return refine(node);
    if (key == "algorithm") return one_of(node, key, {"gptq", "rtn"});
    return word(node, key);
  }

  /// {steps: 200, batch: 16}
  Json refine(const YAML::Node& node) const {
    if (!node.IsMap() || !node["steps"])
      wrong(node, "refine", "a map like {steps: 200, batch: 16}");
    check_keys(node, {"steps", "batch"}, "refine");
    Json value{{"steps", integer(node["steps"], "steps", 0, 1'000'000)}};
    if (const auto batch = node["batch"]) value["batch"] = integer(batch, "batch", 1, 1 << 20);
    return value;
  }

  void read_settings(const YAML::Node& root, RunSettings& settings) const {
    if (const auto node = root["sequential"]) settings.sequential = flag(node, "sequential");
    if (const auto node = root["strict"]) settings.strict = flag(node, "strict");
    if (const auto node = root["calibrate_all_experts"])
      settings.calibrate_all_experts = flag(node, "calibrate_all_experts");
    if (const auto node = root["actorder"])
      settings.actorder = one_of(node, "actorder", {"static", "none"}) == "static";
    if (const auto node = root["percdamp"]) settings.percdamp = number(node, "percdamp", 1e-6, 10);
    if (const auto node = root["error_feedback"])
      settings.error_feedback = number(node, "error_feedback", 0, 1);
    if (const auto node = root["min_tokens"])
      settings.min_tokens = integer(node, "min_tokens", 0, int64_t{1} << 40);
  }

  std::string word(const YAML::Node& node, const std::string& key) const {
    if (!node.IsScalar() || node.Scalar().empty()) wrong(node, key, "a word");
    return node.Scalar();
  }

  std::string one_of(const YAML::Node& node, const std::string& key,
                     const std::vector<std::string>& known) const {
    const std::string value = word(node, key);
    if (std::find(known.begin(), known.end(), value) != known.end()) return value;
    fail("{}: {} is \"{}\"{}", at(node), key, value,
         nearest_name(value, known).empty() ? fmt::format(", expected {} or {}", known[0], known[1])
                                            : did_you_mean(value, known));
  }

  bool flag(const YAML::Node& node, const std::string& key) const {
    bool value = false;
    if (!node.IsScalar() || !YAML::convert<bool>::decode(node, value))
      wrong(node, key, "true or false");
    return value;
  }

  int64_t integer(const YAML::Node& node, const std::string& key, int64_t least,
                  int64_t most) const {
    int64_t value = 0;
    if (!node.IsScalar() || !YAML::convert<int64_t>::decode(node, value) || value < least ||
        value > most)
      wrong(node, key, fmt::format("a whole number from {} to {}", least, most));
    return value;
  }

  double number(const YAML::Node& node, const std::string& key, double least, double most) const {
    double value = 0;
    if (!node.IsScalar() || !YAML::convert<double>::decode(node, value) ||
        !(value >= least && value <= most))
      wrong(node, key, fmt::format("a number from {:g} to {:g}", least, most));
    return value;
  }

  int64_t group_size(const YAML::Node& node) const {
    int64_t value = 0;
    const bool whole = node.IsScalar() && YAML::convert<int64_t>::decode(node, value);
    if (!whole || value < -1 || value > kMaximumGroupSize)
      wrong(node, "group_size",
            fmt::format("a number from 1 to {}, -1 for a row, or 0 for a whole matrix",
                        kMaximumGroupSize));
    return value;
  }

  std::string file_;
};

Recipe Recipe::parse(const std::string& text, const std::string& file_name) {
  return RecipeParser(file_name).parse(text);
}

Recipe Recipe::load(const std::filesystem::path& path) {
  return parse(read_file(path), path.string());
}

}  // namespace aqhost
