#include "config/yaml.h"

#include <yaml-cpp/yaml.h>

#include "base/error.h"

namespace aqhost {
namespace {

class YamlReader {
 public:
  explicit YamlReader(std::string file) : file_(std::move(file)) {}

  Json value(const YAML::Node& node) const {
    if (node.IsScalar()) return scalar(node);
    if (node.IsSequence()) {
      Json list = Json::array();
      for (const YAML::Node& element : node) list.push_back(value(element));
      return list;
    }
    if (!node.IsMap()) return {};
    Json map = Json::object();
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) fail("{}: a key is not a word", at(entry.first));
      const std::string& key = entry.first.Scalar();
      if (map.contains(key)) fail("{}: the key \"{}\" appears twice", at(entry.first), key);
      map[key] = value(entry.second);
    }
    return map;
  }

 private:
  std::string at(const YAML::Node& node) const {
    return fmt::format("{}:{}", file_, node.Mark().line + 1);
  }

  /// yaml-cpp gives scalars in quotes the tag "!".
  static Json scalar(const YAML::Node& node) {
    if (node.Tag() == "!") return node.Scalar();
    if (int64_t whole = 0; YAML::convert<int64_t>::decode(node, whole)) return whole;
    if (double number = 0; YAML::convert<double>::decode(node, number)) return number;
    if (node.Scalar() == "true" || node.Scalar() == "false") return node.Scalar() == "true";
    return node.Scalar();
  }

  std::string file_;
};

}  // namespace

Json parse_yaml(const std::string& text, const std::string& file) {
  try {
    return YamlReader(file).value(YAML::Load(text));
  } catch (const YAML::Exception& e) {
    fail("{}:{}: {}", file, e.mark.line + 1, e.msg);
  }
}

}  // namespace aqhost
