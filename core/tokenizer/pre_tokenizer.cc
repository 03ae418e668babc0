#include "tokenizer/pre_tokenizer.h"

#include <array>
#include <optional>

#include "base/error.h"
#include "tokenizer/regex.h"
#include "tokenizer/unicode.h"

namespace aqhost {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// Rust's char::is_numeric, including two ranges of Unicode 17.0 that Oniguruma does not have.
constexpr std::string_view kNumeric = R"([\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}])";

enum class Behavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };

Behavior read_behavior(const Field& config) {
  const std::string& name = config.text();
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Contiguous") return Behavior::kContiguous;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  config.unsupported();
}

/// Applies HF's SplitDelimiterBehavior to the matches, in place. A match joins its neighbour only
/// if that neighbour does not follow (or precede) another match.
void merge_spans(Behavior behavior, std::vector<Span>& spans) {
  size_t kept = 0;
  if (behavior == Behavior::kRemoved) {
    std::erase_if(spans, [](const Span& span) { return span.is_match; });
  } else if (behavior == Behavior::kContiguous) {
    for (const Span& span : spans) {
      if (kept > 0 && spans[kept - 1].is_match == span.is_match) {
        spans[kept - 1].end = span.end;
      } else {
        spans[kept++] = span;
      }
    }
    spans.resize(kept);
  } else if (behavior == Behavior::kMergedWithPrevious) {
    bool previous_match = false;
    for (const Span span : spans) {
      if (kept > 0 && span.is_match && !previous_match) {
        spans[kept - 1].end = span.end;
      } else {
        spans[kept++] = span;
      }
      previous_match = span.is_match;
    }
    spans.resize(kept);
  } else if (behavior == Behavior::kMergedWithNext) {
    bool next_match = false;
    kept = spans.size();
    for (size_t i = spans.size(); i-- > 0;) {
      const Span span = spans[i];
      if (kept < spans.size() && span.is_match && !next_match) {
        spans[kept].begin = span.begin;
      } else {
        spans[--kept] = span;
      }
      next_match = span.is_match;
    }
    spans.erase(spans.begin(), spans.begin() + static_cast<ptrdiff_t>(kept));
  }
}

void emit(std::string_view text, const std::vector<Span>& spans,
          std::vector<std::string_view>& pieces) {
  for (const Span& span : spans) {
    if (span.begin != span.end) pieces.push_back(text.substr(span.begin, span.end - span.begin));
  }
}

struct Alphabet {
  std::array<std::string, 256> characters;
  Alphabet() {
    CodePoint next = 256;
    for (CodePoint byte = 0; byte < 256; byte++) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      append_utf8(characters[static_cast<size_t>(byte)], printable ? byte : next++);
    }
  }
};

}  // namespace

std::string to_byte_level(std::string_view bytes) {
  static const Alphabet alphabet;
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char byte : bytes) text += alphabet.characters[static_cast<unsigned char>(byte)];
  return text;
}

PreTokenizer::PreTokenizer(const Field& config) {
  if (!config.is_null()) add(config);
}

void PreTokenizer::add(const Field& config) {
  const Field kind = config["type"];
  const std::string& type = kind.text();
  // Steps after ByteLevel would have to see its alphabet instead of the text.
  if (byte_level_ && type != "Sequence") kind.unsupported();
  if (type == "Sequence") {
    for (const Field& item : config["pretokenizers"].items()) add(item);
  } else if (type == "ByteLevel") {
    add_byte_level(config);
  } else if (type == "Split") {
    add_split(config);
  } else if (type == "Digits") {
    const Behavior behavior =
        config["individual_digits"].flag() ? Behavior::kIsolated : Behavior::kContiguous;
    steps_.push_back([pattern = Regex(kNumeric, config.where()), behavior](std::string_view piece,
                                                                           const Output& out) {
      thread_local std::vector<Span> spans;
      pattern.split(piece, spans);
      merge_spans(behavior, spans);
      emit(piece, spans, out.pieces);
    });
  } else if (type == "Metaspace") {
    add_metaspace(config);
  } else {
    kind.unsupported();
  }
}

void PreTokenizer::add_byte_level(const Field& config) {
  byte_level_ = true;
  const bool prefix_space = config["add_prefix_space"].flag();
  std::optional<Regex> pattern;
  if (config["use_regex"].flag_or(true)) pattern.emplace(kGpt2Pattern, config.where());
  if (!prefix_space && !pattern) return;
  steps_.push_back([prefix_space, pattern](std::string_view piece, const Output& out) {
    if (prefix_space && piece.front() != ' ') {
      piece = out.changed.emplace_back(" " + std::string(piece));
    }
    if (!pattern) return out.pieces.push_back(piece);
    thread_local std::vector<Span> spans;
    pattern->split(piece, spans);
    emit(piece, spans, out.pieces);
  });
}

void PreTokenizer::add_split(const Field& config) {
  steps_.push_back([pattern = read_pattern(config["pattern"]),
                    behavior = read_behavior(config["behavior"]),
                    invert = config["invert"].flag()](std::string_view piece, const Output& out) {
    thread_local std::vector<Span> spans;
    pattern.split(piece, spans);
    if (invert) {
      for (Span& span : spans) span.is_match = !span.is_match;
    }
    merge_spans(behavior, spans);
    emit(piece, spans, out.pieces);
  });
}

void PreTokenizer::add_metaspace(const Field& config) {
  const std::string replacement = config["replacement"].text();
  // Older files have add_prefix_space instead of prepend_scheme.
  const std::string scheme = config["prepend_scheme"].text_or(
      config["add_prefix_space"].flag_or(true) ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    config["prepend_scheme"].unsupported();
  }
  // Which of several pieces comes first depends on how HF tracks offsets.
  if (scheme == "first" && !steps_.empty()) {
    fail("{} \"first\" after another pre-tokenizer is not supported",
         config["prepend_scheme"].where());
  }
  const bool cut = config["split"].flag_or(true);
  const Regex mark = Regex::literal(replacement, config["replacement"].where());
  steps_.push_back([=](std::string_view piece, const Output& out) {
    thread_local std::vector<Span> spans;
    std::string text;
    for (const char c : piece) {
      if (c == ' ') {
        text += replacement;
      } else {
        text += c;
      }
    }
    const bool wanted = scheme == "always" || (scheme == "first" && out.at_origin);
    if (wanted && !text.starts_with(replacement)) text.insert(0, replacement);
    piece = out.changed.emplace_back(std::move(text));
    if (!cut) return out.pieces.push_back(piece);
    mark.split(piece, spans);
    merge_spans(Behavior::kMergedWithNext, spans);
    emit(piece, spans, out.pieces);
  });
}

void PreTokenizer::split(std::string_view text, bool at_origin,
                         std::vector<std::string_view>& pieces,
                         std::deque<std::string>& changed) const {
  pieces.assign(1, text);
  std::vector<std::string_view> next;
  for (const Step& step : steps_) {
    next.clear();
    for (const std::string_view piece : pieces) step(piece, {next, changed, at_origin});
    pieces.swap(next);
  }
}

}  // namespace aqhost
