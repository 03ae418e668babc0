#include "tokenizer/file_reader.h"

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace {

constexpr size_t kMaxNesting = 64;

/// Receives the events of the parser. Entries of the tables never become a Json.
class Handler final : public nlohmann::json_sax<Json> {
 public:
  Handler(TokenizerFile& file, const std::string& where) : file_(file), where_(where) {}

  bool null() override { return value(nullptr); }
  bool boolean(bool flag) override { return value(flag); }
  bool number_integer(int64_t number) override { return value(number); }
  bool number_float(double number, const std::string&) override { return value(number); }
  bool binary(Json::binary_t&) override { return false; }

  bool number_unsigned(uint64_t number) override {
    if (table_ != Table::kVocab || number > INT32_MAX) return value(number);
    file_.vocab->emplace_back(std::move(token_), static_cast<int32_t>(number));
    return true;
  }

  bool string(std::string& text) override {
    if (table_ != Table::kMerges) return value(std::move(text));
    if (in_pair_) {
      pair_.push_back(std::move(text));
    } else if (!text.starts_with("#version")) {
      add_spaced(text);
    }
    return true;
  }

  bool key(std::string& name) override {
    if (table_ == Table::kVocab) {
      token_ = std::move(name);
      return true;
    }
    if (stack_.back()->contains(name)) fail("{}: key \"{}\" appears twice", where_, name);
    keys_.back() = std::move(name);
    return true;
  }

  bool start_object(size_t) override {
    if (at("vocab")) {
      if (file_.vocab) fail("{}: key \"vocab\" appears twice", where_);
      table_ = Table::kVocab;
      file_.vocab.emplace();
      return true;
    }
    return open(Json::object());
  }
  bool end_object() override {
    if (table_ != Table::kVocab) return close();
    table_ = Table::kNone;
    return true;
  }

  bool start_array(size_t) override {
    if (table_ == Table::kMerges && !in_pair_) return in_pair_ = true;
    if (!at("merges")) return open(Json::array());
    if (file_.merges) fail("{}: key \"merges\" appears twice", where_);
    table_ = Table::kMerges;
    file_.merges.emplace();
    return true;
  }
  bool end_array() override {
    if (table_ != Table::kMerges) return close();
    if (in_pair_) {
      if (pair_.size() != 2) refuse_merge();
      add_merge(std::move(pair_[0]), std::move(pair_[1]));
      pair_.clear();
      in_pair_ = false;
    } else {
      table_ = Table::kNone;
    }
    return true;
  }

  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    std::string_view what = error.what();
    if (const auto end = what.find("] "); end != what.npos) what.remove_prefix(end + 2);
    fail("{}: not valid JSON: {}", where_, what);
  }

 private:
  enum class Table { kNone, kVocab, kMerges };

  [[noreturn]] void refuse_merge() const {
    fail("{}: model.merges[{}]: expected a pair of tokens", where_, file_.merges->size());
  }

  /// Whether the value that begins now is the model's `name`.
  bool at(std::string_view name) const {
    return table_ == Table::kNone && stack_.size() == 2 && keys_[0] == "model" && keys_[1] == name;
  }

  Json* insert(Json&& value) {
    if (stack_.empty()) return &(file_.rest = std::move(value));
    Json& parent = *stack_.back();
    if (parent.is_object()) return &(parent[keys_.back()] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }

  bool value(Json&& json) {
    if (table_ == Table::kVocab) {
      fail("{}: model.vocab: the id of \"{}\" is {}, expected an integer from 0 to {}", where_,
           token_, json.dump(), INT32_MAX);
    }
    if (table_ == Table::kMerges) refuse_merge();
    insert(std::move(json));
    return true;
  }

  bool open(Json&& container) {
    if (table_ != Table::kNone) return value(std::move(container));
    if (stack_.size() == kMaxNesting) {
      fail("{}: JSON nested deeper than {} levels", where_, kMaxNesting);
    }
    stack_.push_back(insert(std::move(container)));
    keys_.emplace_back();
    return true;
  }
  bool close() {
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  /// Adds a merge in the older spelling, "left right".
  void add_spaced(std::string_view text) {
    const size_t space = text.find(' ');
    if (space == text.npos || text.find(' ', space + 1) != text.npos) refuse_merge();
    add_merge(std::string(text.substr(0, space)), std::string(text.substr(space + 1)));
  }
  void add_merge(std::string&& left, std::string&& right) {
    if (left.empty() || right.empty()) refuse_merge();
    file_.merges->emplace_back(std::move(left), std::move(right));
  }

  TokenizerFile& file_;
  const std::string& where_;
  std::vector<Json*> stack_;       ///< containers of `rest` that are open
  std::vector<std::string> keys_;  ///< for each of them, the key that was read last
  Table table_ = Table::kNone;
  std::string token_;
  std::vector<std::string> pair_;
  bool in_pair_ = false;
};

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view text, const std::string& where) {
  if (const auto other = misplaced_file(text); !other.empty()) fail("{}: is {}", where, other);
  TokenizerFile file;
  Handler handler(file, where);
  Json::sax_parse(text, &handler);
  return file;
}

}  // namespace aqhost
