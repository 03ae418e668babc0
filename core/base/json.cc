#include "base/json.h"

#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace {

constexpr int kMaxDepth = 64;

/// Refuses what nlohmann accepts: repeated keys, of which only the last would survive, and
/// unlimited depth. It uses the SAX interface and not the parser's callback, because with a
/// callback nlohmann walks through a whole object at the end of each member, which is quadratic in
/// the number of tensors of a file.
class StrictParser : public nlohmann::json_sax<Json> {
 public:
  explicit StrictParser(const std::string& where) : where_(where) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(int64_t) override { return true; }
  bool number_unsigned(uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(Json::binary_t&) override { return true; }
  bool start_object(std::size_t) override {
    keys_.emplace_back();
    return enter();
  }
  bool key(std::string& key) override {
    if (!keys_.back().insert(key).second) fail("{}: key \"{}\" appears twice", where_, key);
    return true;
  }
  bool end_object() override {
    keys_.pop_back();
    return leave();
  }
  bool start_array(std::size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  /// Returns false; Json::parse() then reports what is wrong.
  bool parse_error(std::size_t, const std::string&, const Json::exception&) override {
    return false;
  }

 private:
  bool enter() {
    if (++depth_ > kMaxDepth) fail("{}: JSON nested deeper than {} levels", where_, kMaxDepth);
    return true;
  }
  bool leave() {
    depth_--;
    return true;
  }

  const std::string& where_;
  int depth_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& where) {
  if (const auto other = misplaced_file(text); !other.empty()) fail("{}: is {}", where, other);
  try {
    StrictParser parser(where);
    Json::sax_parse(text, &parser);
    return Json::parse(text);
  } catch (const Json::exception& e) {
    // `what` is like "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    std::string_view what = e.what();
    if (const auto end = what.find("] "); end != what.npos) what.remove_prefix(end + 2);
    fail("{}: not valid JSON: {}", where, what);
  }
}

Json read_json(const std::filesystem::path& path) {
  return parse_json(read_file(path), path.string());
}

}  // namespace aqhost
