#include "tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/error.h"
#include "tokenizer/regex_dialect.h"
#include "tokenizer/unicode.h"

namespace aqhost {
namespace {

std::string message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

template <auto kFree>
struct Free {
  void operator()(auto* p) const { kFree(p); }
};

/// The memory for matching; PCRE2 needs one set per thread.
struct Scratch {
  std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>> data{
      pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>> context{
      pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>> stack{
      pcre2_jit_stack_create(32 << 10, 64 << 20, nullptr)};
  Scratch() {
    if (!data || !context || !stack) throw std::bad_alloc();
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

}  // namespace

struct Regex::Code {
  std::unique_ptr<pcre2_code, Free<pcre2_code_free>> compiled;
  std::string where;
  bool matches_empty = false;
};

Regex::Regex(std::string_view pattern, const std::string& where)
    : code_(compile(to_pcre2(pattern, where), false, pattern, where)) {}

Regex Regex::literal(std::string_view text, const std::string& where) {
  return Regex(compile(text, true, text, where));
}

std::shared_ptr<const Regex::Code> Regex::compile(std::string_view pattern, bool literal,
                                                  std::string_view shown,
                                                  const std::string& where) {
  const std::unique_ptr<pcre2_compile_context, Free<pcre2_compile_context_free>> context(
      pcre2_compile_context_create(nullptr));
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // In Ruby, ^ and $ always match at lines.
  const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->where = where;
  code->compiled.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     options, &error, &offset, context.get()));
  if (!code->compiled) {
    fail("{}: the regular expression \"{}\" is not supported: {}", where, shown, message(error));
  }
  // If there is no JIT compiler for this processor, pcre2_match interprets the pattern.
  pcre2_jit_compile(code->compiled.get(), PCRE2_JIT_COMPLETE);
  uint32_t shortest = 0;
  pcre2_pattern_info(code->compiled.get(), PCRE2_INFO_MINLENGTH, &shortest);
  code->matches_empty = shortest == 0;
  return code;
}

bool Regex::find(std::string_view text, size_t from, Span& match) const {
  thread_local const Scratch scratch;
  const int found =
      pcre2_match(code_->compiled.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                  from, PCRE2_NO_UTF_CHECK, scratch.data.get(), scratch.context.get());
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) {
    fail("{}: matching failed at byte {} of {}: {}", code_->where, from, text.size(),
         message(found));
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(scratch.data.get());
  match = {ends[0], ends[1], true};
  return true;
}

void Regex::split(std::string_view text, std::vector<Span>& spans) const {
  spans.clear();
  size_t done = 0, from = 0;  // `done` is the end of the last span; the search continues at `from`
  bool after_match = false;
  Span match{};
  while (from < text.size() || (from == text.size() && code_->matches_empty)) {
    if (!find(text, from, match)) break;
    if (match.begin == match.end && after_match && match.end == done) {
      if (from == text.size()) break;
      next_code_point(text, from);
      continue;
    }
    if (done != match.begin) spans.push_back({done, match.begin, false});
    spans.push_back(match);
    done = from = match.end;
    after_match = true;
  }
  if (done != text.size()) spans.push_back({done, text.size(), false});
}

Regex read_pattern(const Field& config) {
  const Field literal = config["String"];
  if (literal.is_null()) return Regex(config["Regex"].text(), config.where());
  if (literal.text().empty()) literal.unsupported();
  return Regex::literal(literal.text(), config.where());
}

}  // namespace aqhost
