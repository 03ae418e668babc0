#include "tokenizer/bpe.h"

#include <algorithm>
#include <queue>

#include "base/error.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/unicode.h"

namespace aqhost {
namespace {

constexpr std::string_view kMark = "\u2581";  ///< SentencePiece's symbol for a space
constexpr size_t kCachedWord = 256;           ///< in bytes; longer words are rarely seen again
constexpr size_t kCachedWords = size_t{1} << 17;

}  // namespace

Bpe::Bpe(const Field& config, TokenizerFile& file, bool byte_level)
    : byte_level_(byte_level),
      byte_fallback_(config["byte_fallback"].flag_or(false)),
      fuse_unknown_(config["fuse_unk"].flag_or(false)),
      ignore_merges_(config["ignore_merges"].flag_or(false)) {
  // Old files do not name the type BPE.
  const Field type = config["type"];
  if (!type.is_null() && type.text() != "BPE") type.unsupported();
  if (!config["dropout"].is_null() && config["dropout"].json() != 0.0) {
    config["dropout"].unsupported();
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!config[affix].text_or("").empty()) config[affix].unsupported();
  }
  read_vocab(config["vocab"], file);
  const Field unknown = config["unk_token"];
  if (!unknown.is_null()) {
    unknown_ = token_id(unknown.text());
    if (!unknown_) fail("{} \"{}\" is not in model.vocab", unknown.where(), unknown.text());
  }
  for (int byte = 0; byte < 256; byte++) {
    byte_ids_.push_back(token_id(fmt::format("<0x{:02X}>", byte)));
  }
  cuts_at_mark_ = !byte_level_ && !ignore_merges_ && vocab_.contains(kMark);
  read_merges(config["merges"], file);
}

void Bpe::read_vocab(const Field& config, TokenizerFile& file) {
  if (!file.vocab) config.mismatch("an object of tokens and ids");
  std::vector<int32_t> ids;
  ids.reserve(file.vocab->size());
  vocab_.reserve(file.vocab->size());
  for (auto& [token, id] : *file.vocab) {
    ids.push_back(id);
    const auto [entry, added] = vocab_.emplace(std::move(token), id);
    if (!added) fail("{}: \"{}\" appears twice", config.where(), entry->first);
  }
  std::ranges::sort(ids);
  if (const auto twice = std::ranges::adjacent_find(ids); twice != ids.end()) {
    std::string sharing;
    for (const auto& [token, id] : vocab_) {
      if (id == *twice) sharing += fmt::format("{}\"{}\"", sharing.empty() ? "" : " and ", token);
    }
    fail("{}: {} share the id {}", config.where(), sharing, *twice);
  }
}

void Bpe::read_merges(const Field& config, const TokenizerFile& file) {
  if (!file.merges) config.mismatch("an array of pairs");
  merges_.reserve(file.merges->size());
  int32_t rank = 0;
  std::string joined;
  for (const auto& [left, right] : *file.merges) {
    joined = left;
    joined += right;
    const auto id_of = [&, this](const std::string& token) {
      const auto found = vocab_.find(token);
      if (found != vocab_.end()) return found->second;
      fail("{}[{}]: \"{}\" of \"{}\" + \"{}\" is not in model.vocab", config.where(), rank, token,
           left, right);
    };
    // If a pair is listed twice, the last entry counts, as in HF.
    const Pair pair{id_of(left), id_of(right)};
    merges_[pair] = {rank, id_of(joined)};
    if (right.starts_with(kMark) && !left.ends_with(kMark)) cuts_at_mark_ = false;
    rank++;
  }
}

std::optional<int32_t> Bpe::token_id(std::string_view token) const {
  const auto found = vocab_.find(token);
  if (found == vocab_.end()) return std::nullopt;
  return found->second;
}

void Bpe::encode(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const {
  for (size_t begin = 0, end = 0; begin < word.size(); begin = end) {
    end = cuts_at_mark_ ? next_cut(word, begin) : word.size();
    encode_cached(word.substr(begin, end - begin), cache, ids);
  }
}

size_t Bpe::next_cut(std::string_view word, size_t from) const {
  size_t at = from;
  while ((at = word.find(kMark, at + 1)) != word.npos) {
    if (!word.substr(from, at - from).ends_with(kMark)) return at;
  }
  return word.size();
}

void Bpe::encode_cached(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const {
  if (word.size() > kCachedWord) return encode_word(word, ids);
  if (const auto found = cache.find(word); found != cache.end()) {
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return;
  }
  const auto start = static_cast<ptrdiff_t>(ids.size());
  encode_word(word, ids);
  if (cache.size() < kCachedWords) {
    cache.emplace(word, std::vector<int32_t>(ids.begin() + start, ids.end()));
  }
}

void Bpe::encode_word(std::string_view word, std::vector<int32_t>& ids) const {
  std::string mapped;
  if (byte_level_) word = mapped = to_byte_level(word);
  if (ignore_merges_) {
    if (const std::optional<int32_t> id = token_id(word)) {
      ids.push_back(*id);
      return;
    }
  }
  merge(characters(word), ids);
}

std::vector<int32_t> Bpe::characters(std::string_view word) const {
  std::vector<int32_t> ids;
  ids.reserve(word.size());
  bool pending = false;  // an unknown token that may be fused with the following ones
  for (size_t at = 0; at < word.size();) {
    const size_t start = at;
    next_code_point(word, at);
    const std::string_view character = word.substr(start, at - start);
    if (const std::optional<int32_t> id = token_id(character)) {
      if (pending) ids.push_back(*unknown_);
      pending = false;
      ids.push_back(*id);
    } else if (!(byte_fallback_ && add_bytes(character, ids)) && unknown_) {
      if (pending && !fuse_unknown_) ids.push_back(*unknown_);
      pending = true;
    }
  }
  if (pending) ids.push_back(*unknown_);
  return ids;
}

bool Bpe::add_bytes(std::string_view character, std::vector<int32_t>& ids) const {
  const auto id_of = [this](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
  if (!std::ranges::all_of(character, [&](char byte) { return id_of(byte).has_value(); })) {
    return false;
  }
  for (const char byte : character) ids.push_back(*id_of(byte));
  return true;
}

void Bpe::merge(const std::vector<int32_t>& tokens, std::vector<int32_t>& ids) const {
  constexpr int32_t kNone = -1;
  if (tokens.size() > INT32_MAX) fail("a word of {} characters is too long", tokens.size());
  const auto count = static_cast<int32_t>(tokens.size());
  std::vector<Symbol> symbols(tokens.size());
  const auto symbol = [&symbols](int32_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  for (int32_t i = 0; i < count; i++) {
    symbol(i) = {tokens[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : kNone};
  }
  const auto merge_at = [&](int32_t i) {
    return merges_.find(Pair{symbol(i).id, symbol(symbol(i).next).id});
  };
  std::vector<Candidate> initial;
  for (int32_t i = 0; i + 1 < count; i++) {
    const auto found = merge_at(i);
    if (found != merges_.end()) initial.push_back({found->second.rank, i, found->second.id});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                               std::move(initial));
  const auto consider = [&](int32_t i) {
    if (i == kNone || symbol(i).next == kNone) return;
    const auto found = merge_at(i);
    if (found != merges_.end()) queue.push({found->second.rank, i, found->second.id});
  };
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbol(best.position);
    // The pair may no longer exist: its left token may be merged away, or either token may have
    // grown.
    if (left.id == kNone || left.next == kNone) continue;
    const auto found = merge_at(best.position);
    if (found == merges_.end() || found->second.id != best.id) continue;
    Symbol& right = symbol(left.next);
    left.id = best.id;
    right.id = kNone;
    left.next = right.next;
    if (left.next != kNone) symbol(left.next).previous = best.position;
    consider(left.previous);
    consider(best.position);
  }
  for (int32_t i = count > 0 ? 0 : kNone; i != kNone; i = symbol(i).next) {
    ids.push_back(symbol(i).id);
  }
}

}  // namespace aqhost
