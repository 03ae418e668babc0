#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "base/error.h"
#include "tokenizer/regex.h"
#include "tokenizer/unicode.h"

namespace aqhost {
namespace {

/// \w as Rust's regex crate defines it.
bool is_word(std::string_view character) {
  static const Regex word(R"([\w\x{200C}\x{200D}])", "\\w");
  std::vector<Span> spans;
  word.split(character, spans);
  return spans.size() == 1 && spans[0].is_match;
}

}  // namespace

AddedTokens::AddedTokens(const Field& config, const Bpe& model, const Normalizer& normalizer) {
  if (config.is_null()) return;
  const auto model_size = static_cast<int32_t>(model.vocab().size());
  std::vector<Field> items = config.items();
  // Like HF, ignores the ids in the file: a token has the id that the model gives it, or the next
  // free id.
  for (const Field& item : items) {
    const std::string& content = item["content"].text();
    if (content.empty()) continue;
    const int64_t next = std::max(int64_t{model_size}, int64_t{largest_id_} + 1);
    const std::optional<int32_t> known = model.token_id(content);
    if (!known && next > INT32_MAX)
      fail("{} \"{}\" would have the id {}, expected at most {}", item["content"].where(), content,
           next, INT32_MAX);
    const int32_t id = known.value_or(static_cast<int32_t>(next));
    if (!ids_.emplace(content, id).second) {
      fail("{} \"{}\" appears twice", item["content"].where(), content);
    }
    largest_id_ = std::max(largest_id_, id);
  }
  // Special tokens go first. If normalisation makes several contents equal, the first one counts.
  std::ranges::stable_partition(items, [](const Field& item) { return item["special"].flag(); });
  for (const Field& item : items) {
    Normalized content{item["content"].text()};
    if (content.text.empty()) continue;
    const Token token{ids_.find(content.text)->second, item["single_word"].flag(),
                      item["lstrip"].flag(), item["rstrip"].flag()};
    const bool normalized = item["normalized"].flag();
    if (normalized) normalizer.apply(content);
    if (content.text.empty()) fail("{} is normalised to nothing", item["content"].where());
    (normalized ? normalized_ : raw_).add(content.text, token);
  }
}

std::optional<int32_t> AddedTokens::token_id(std::string_view token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

void AddedTokens::Trie::add(std::string_view content, const Token& token) {
  first_[static_cast<unsigned char>(content[0])] = true;
  size_t node = 0;
  for (const char byte : content) {
    auto& children = nodes_[node].children;
    auto child = std::ranges::lower_bound(children, byte, {}, &std::pair<char, size_t>::first);
    if (child == children.end() || child->first != byte) {
      child = children.emplace(child, byte, nodes_.size());
      node = child->second;
      nodes_.emplace_back();
    } else {
      node = child->second;
    }
  }
  if (nodes_[node].token) return;
  nodes_[node].token = tokens_.size();
  tokens_.push_back(token);
}

std::optional<AddedTokens::Trie::Found> AddedTokens::Trie::find(std::string_view text,
                                                                size_t from) const {
  for (size_t begin = from; begin < text.size(); begin++) {
    if (!first_[static_cast<unsigned char>(text[begin])]) continue;
    std::optional<Found> longest;
    size_t node = 0;
    for (size_t end = begin; end < text.size();) {
      const auto& children = nodes_[node].children;
      const auto child =
          std::ranges::lower_bound(children, text[end], {}, &std::pair<char, size_t>::first);
      if (child == children.end() || child->first != text[end]) break;
      node = child->second;
      end++;
      if (nodes_[node].token) longest = Found{begin, end, &tokens_[*nodes_[node].token]};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

std::vector<AddedTokens::Part> AddedTokens::Trie::split(std::string_view text) const {
  const auto word_before = [text](size_t end) {
    size_t begin = end;
    if (end > 0) previous_code_point(text, begin);
    return end > 0 && is_word(text.substr(begin, end - begin));
  };
  const auto word_after = [text](size_t begin) {
    size_t end = begin;
    if (begin < text.size()) next_code_point(text, end);
    return end > begin && is_word(text.substr(begin, end - begin));
  };
  std::vector<Part> parts;
  size_t done = 0, from = 0;
  while (const std::optional<Found> found = find(text, from)) {
    auto [begin, end, token] = *found;
    from = end;
    if (token->single_word && (word_before(begin) || word_after(end))) continue;
    if (token->lstrip) {
      size_t at = begin;
      while (at > 0 && is_space(previous_code_point(text, at))) begin = at;
      begin = std::max(begin, done);
    }
    if (token->rstrip) {
      size_t at = end;
      while (at < text.size() && is_space(next_code_point(text, at))) end = at;
    }
    if (begin >= end) continue;  // the previous token took all of it
    if (done < begin) parts.push_back({done, begin, std::nullopt});
    parts.push_back({begin, end, token->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), std::nullopt});
  return parts;
}

}  // namespace aqhost
