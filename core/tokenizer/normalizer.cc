#include "tokenizer/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include <algorithm>

#include "base/error.h"
#include "tokenizer/regex.h"
#include "tokenizer/unicode.h"

namespace aqhost {
namespace {

using GetForm = const icu::Normalizer2* (*)(UErrorCode&);

void check(UErrorCode status) {
  if (U_FAILURE(status)) fail("Unicode normalisation failed: {}", u_errorName(status));
}

/// HF normalises by the tables of Unicode 9.0, so later characters stay as they are.
const icu::UnicodeSet& normalized_characters() {
  static const icu::UnicodeSet set = [] {
    UErrorCode status = U_ZERO_ERROR;
    icu::UnicodeSet of_age(UNICODE_STRING_SIMPLE("[:age=9.0:]"), status);
    check(status);
    of_age.freeze();
    return of_age;
  }();
  return set;
}

/// Sorts runs of more than kLongRun combining marks, after decomposing them, by combining class.
/// `form` itself would take quadratic time for this. The text stays equivalent for `form` (Unicode
/// Standard, 3.11).
class MarkSorter {
 public:
  explicit MarkSorter(const icu::Normalizer2& form) : form_(form) {}

  std::string run(std::string_view text) {
    result_.reserve(text.size());
    size_t run_begin = 0;
    for (size_t at = 0; at < text.size();) {
      const size_t begin = at;
      const CodePoint c = next_code_point(text, at);
      if (c >= 0x300 && add_mark(c)) continue;
      flush(text.substr(run_begin, begin - run_begin));
      result_ += text.substr(begin, at - begin);
      run_begin = at;
    }
    flush(text.substr(run_begin));
    return std::move(result_);
  }

 private:
  static constexpr size_t kLongRun = 64;

  bool add_mark(CodePoint c) {
    if (!normalized_characters().contains(c)) return false;
    icu::UnicodeString decomposed;
    const bool same = !form_.getDecomposition(c, decomposed);
    if (same) decomposed = icu::UnicodeString(static_cast<UChar32>(c));
    if (form_.getCombiningClass(decomposed.char32At(0)) == 0) return false;
    for (int32_t i = 0; i < decomposed.length(); i = decomposed.moveIndex32(i, 1)) {
      const UChar32 mark = decomposed.char32At(i);
      marks_.emplace_back(form_.getCombiningClass(mark), mark);
    }
    return true;
  }

  void flush(std::string_view run) {
    if (marks_.size() <= kLongRun) {
      result_ += run;
    } else {
      std::ranges::stable_sort(marks_, {}, &std::pair<uint8_t, CodePoint>::first);
      for (const auto& [combining_class, mark] : marks_) append_utf8(result_, mark);
    }
    marks_.clear();
  }

  const icu::Normalizer2& form_;
  std::string result_;
  std::vector<std::pair<uint8_t, CodePoint>> marks_;
};

void normalize_form(const icu::Normalizer2& form, std::string& text) {
  if (is_ascii(text)) return;
  // ICU counts in 32 bits.
  if (text.size() > INT32_MAX / 4) fail("a text of {} bytes is too long to normalise", text.size());
  UErrorCode status = U_ZERO_ERROR;
  text = MarkSorter(form).run(text);
  // A text that is normalised by today's tables is also normalised by the older ones.
  if (form.isNormalizedUTF8(text, status)) return;
  std::string result;
  icu::StringByteSink<std::string> sink(&result);
  icu::FilteredNormalizer2(form, normalized_characters())
      .normalizeUTF8(0, text, sink, nullptr, status);
  check(status);
  text = std::move(result);
}

/// Rust's char::to_lowercase, one character at a time (without the rule for a final sigma).
void lowercase(std::string& text) {
  constexpr CodePoint kCapitalIWithDot = 0x130, kDotAbove = 0x307;
  std::string result;
  result.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = next_code_point(text, at);
    append_utf8(result, u_tolower(c));
    if (c == kCapitalIWithDot) append_utf8(result, kDotAbove);
  }
  text = std::move(result);
}

void strip(Normalized& text, bool left, bool right) {
  size_t begin = 0, end = text.text.size();
  for (size_t at = begin; left && at < end; begin = at) {
    if (!is_space(next_code_point(text.text, at))) break;
  }
  for (size_t at = end; right && at > begin; end = at) {
    if (!is_space(previous_code_point(text.text, at))) break;
  }
  text.at_origin = text.at_origin && begin == 0;
  text.text = text.text.substr(begin, end - begin);
}

void replace_all(const Regex& pattern, const std::string& content, Normalized& text) {
  std::vector<Span> spans;
  pattern.split(text.text, spans);
  if (spans.empty() || (spans.size() == 1 && !spans[0].is_match)) return;
  if (spans[0].is_match && content.empty()) text.at_origin = false;
  std::string result;
  result.reserve(text.text.size());
  for (const Span& span : spans) {
    result += span.is_match ? std::string_view(content)
                            : std::string_view(text.text).substr(span.begin, span.end - span.begin);
  }
  text.text = std::move(result);
}

GetForm form_named(const std::string& type) {
  if (type == "NFC") return &icu::Normalizer2::getNFCInstance;
  if (type == "NFD") return &icu::Normalizer2::getNFDInstance;
  if (type == "NFKC") return &icu::Normalizer2::getNFKCInstance;
  if (type == "NFKD") return &icu::Normalizer2::getNFKDInstance;
  return nullptr;
}

}  // namespace

Normalizer::Normalizer(const Field& config) {
  if (!config.is_null()) add(config);
}

void Normalizer::add(const Field& config) {
  const std::string& type = config["type"].text();
  if (type == "Sequence") {
    for (const Field& item : config["normalizers"].items()) add(item);
  } else if (const GetForm get = form_named(type)) {
    UErrorCode status = U_ZERO_ERROR;
    const icu::Normalizer2* form = get(status);
    check(status);
    steps_.push_back([form](Normalized& text) { normalize_form(*form, text.text); });
  } else if (type == "Lowercase") {
    steps_.push_back([](Normalized& text) { lowercase(text.text); });
  } else if (type == "Strip") {
    steps_.push_back([left = config["strip_left"].flag(), right = config["strip_right"].flag()](
                         Normalized& text) { strip(text, left, right); });
  } else if (type == "Prepend") {
    steps_.push_back([prefix = config["prepend"].text()](Normalized& text) {
      if (!text.text.empty()) text.text.insert(0, prefix);
    });
  } else if (type == "Replace") {
    steps_.push_back([pattern = read_pattern(config["pattern"]),
                      content = config["content"].text()](Normalized& text) {
      replace_all(pattern, content, text);
    });
  } else {
    config["type"].unsupported();
  }
}

void Normalizer::apply(Normalized& text) const {
  for (const Step& step : steps_) step(text);
}

}  // namespace aqhost
