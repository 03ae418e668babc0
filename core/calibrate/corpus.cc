#include "calibrate/corpus.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/json.h"
#include "checkpoint/npy.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

using Ids = std::vector<int64_t>;

/// Collects the windows of documents.
class Cutter {
 public:
  explicit Cutter(int64_t length) : length_(length) {}

  template <typename T>
  void add(const std::vector<T>& document) {
    documents_++;
    longest_ = std::max(longest_, document.size());
    const std::size_t length = static_cast<std::size_t>(length_);
    const std::size_t used = document.size() / length * length;
    ids_.insert(ids_.end(), document.begin(), document.begin() + static_cast<int64_t>(used));
  }

  at::Tensor windows(const std::string& where) const {
    if (ids_.empty() && documents_ == 1)
      fail("{}: the text has {} tokens, a window has {}: give more text or a smaller window", where,
           longest_, length_);
    if (ids_.empty())
      fail(
          "{}: the longest of {} documents has {} tokens, a window has {}: give longer documents "
          "or a smaller window",
          where, documents_, longest_, length_);
    return at::tensor(ids_, at::kLong).view({-1, length_});
  }

 private:
  int64_t length_;
  Ids ids_;
  std::size_t documents_ = 0, longest_ = 0;
};

std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text,
                            const std::string& where) {
  try {
    return tokenizer.encode(text, false);
  } catch (const Error& e) {
    fail("{}: {}", where, e.what());
  }
}

void add_lines(const fs::path& file, const Tokenizer& tokenizer, Cutter& cutter) {
  std::ifstream lines(file);
  if (!lines) fail("{}: cannot be opened", file.string());
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); number++) {
    check_interrupt();
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", file.string(), number);
    const Json document = parse_json(line, where);
    if (!document.is_object() || !document.contains("text") || !document["text"].is_string())
      fail("{}: expected an object with a string \"text\"", where);
    cutter.add(encode(tokenizer, document["text"].get<std::string>(), where));
  }
  if (lines.bad()) fail("{}: cannot be read", file.string());
}

template <typename T>
void append(std::span<const std::byte> bytes, Ids& ids) {
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof(T));
    ids.push_back(static_cast<int64_t>(value));
  }
}

/// The elements of an array of integers, in order.
Ids integers(const StoredTensor& t, const std::string& where) {
  Ids ids;
  ids.reserve(static_cast<std::size_t>(t.numel()));
  // clang-format off
  switch (t.dtype) {
    case DType::kBool:
    case DType::kU8: append<uint8_t>(t.bytes, ids); break;
    case DType::kI8: append<int8_t>(t.bytes, ids); break;
    case DType::kU16: append<uint16_t>(t.bytes, ids); break;
    case DType::kI16: append<int16_t>(t.bytes, ids); break;
    case DType::kU32: append<uint32_t>(t.bytes, ids); break;
    case DType::kI32: append<int32_t>(t.bytes, ids); break;
    case DType::kU64:
    case DType::kI64: append<int64_t>(t.bytes, ids); break;
    default: fail("{}: {}, expected integers", where, dtype_name(t.dtype));
  }
  // clang-format on
  return ids;
}

/// Where a row of a mask is 1: [begin, end). Error unless that is one stretch.
std::pair<std::size_t, std::size_t> stretch(std::span<const int64_t> mask,
                                            const std::string& where) {
  const auto one = [](int64_t m) { return m != 0; };
  const auto begin = std::find_if(mask.begin(), mask.end(), one);
  const auto end = std::find_if_not(begin, mask.end(), one);
  if (std::any_of(end, mask.end(), one))
    fail("{}: is 1, 0 and 1 again, expected one stretch of 1 in a row", where);
  return {static_cast<std::size_t>(begin - mask.begin()),
          static_cast<std::size_t>(end - mask.begin())};
}

/// The rows of an array of ids; `mask`, if not null, tells which of them are no padding.
void add_ids(const StoredTensor& t, const StoredTensor* mask, int64_t vocab_size,
             const std::string& where, Cutter& cutter) {
  if (t.shape.empty() || t.shape.size() > 2)
    fail("{}: has {} dimensions, expected [tokens] or [documents, tokens]", where, t.shape.size());
  if (mask != nullptr && mask->shape != t.shape)
    fail("{}: attention_mask has another shape than the ids", where);
  const Ids ids = integers(t, where);
  const Ids kept = mask == nullptr ? Ids() : integers(*mask, where + ": attention_mask");
  const auto columns = static_cast<std::size_t>(t.shape.back());
  for (std::size_t row = 0; columns > 0 && row * columns < ids.size(); row++) {
    const std::span<const int64_t> all = std::span(ids).subspan(row * columns, columns);
    std::size_t begin = 0, end = columns;
    if (mask != nullptr)
      std::tie(begin, end) = stretch(std::span(kept).subspan(row * columns, columns),
                                     fmt::format("{}: row {} of attention_mask", where, row));
    for (std::size_t i = begin; i < end; i++)
      if (all[i] < 0 || all[i] >= vocab_size)
        fail("{}: row {}, column {}: id {} is outside the model's vocabulary of {}", where, row, i,
             all[i], vocab_size);
    cutter.add(
        Ids(all.begin() + static_cast<int64_t>(begin), all.begin() + static_cast<int64_t>(end)));
  }
}

void add_safetensors(const fs::path& file, int64_t vocab_size, Cutter& cutter) {
  const SafetensorsFile stored(file);
  const auto find = [&](std::string_view name) -> const StoredTensor* {
    for (const StoredTensor& t : stored.tensors())
      if (t.name == name) return &t;
    return nullptr;
  };
  const std::string where = file.string() + ": tensor ";
  if (const StoredTensor* ids = find("input_ids"))
    return add_ids(*ids, find("attention_mask"), vocab_size, where + ids->name, cutter);
  for (const StoredTensor& t : stored.tensors())
    add_ids(t, nullptr, vocab_size, where + t.name, cutter);
}

}  // namespace

CorpusFile parse_corpus_file(const std::string& value) {
  const std::size_t equals = value.rfind('=');
  if (equals == std::string::npos || fs::exists(value)) return {value};
  CorpusFile file{value.substr(0, equals)};
  const char *begin = value.data() + equals + 1, *end = value.data() + value.size();
  const auto number = std::from_chars(begin, end, file.weight);
  if (begin == end || number.ec != std::errc() || number.ptr != end) return {value};
  if (!std::isfinite(file.weight) || file.weight <= 0)
    throw UsageError(fmt::format("--calib {}: a weight of {}, expected a number above 0", value,
                                 std::string(begin, end)));
  return file;
}

CorpusReader::CorpusReader(fs::path model, int64_t vocab_size)
    : model_(std::move(model)), vocab_size_(vocab_size) {}

const Tokenizer& CorpusReader::tokenizer() {
  if (!tokenizer_) tokenizer_ = Tokenizer::load(model_);
  return *tokenizer_;
}

at::Tensor CorpusReader::windows(const fs::path& file, int64_t length) {
  Cutter cutter(length);
  const std::string kind = file.extension().string(), where = file.string();
  if (kind == ".jsonl") {
    add_lines(file, tokenizer(), cutter);
  } else if (kind == ".npy") {
    const MappedFile mapped(file);
    add_ids(parse_npy(mapped.bytes(), where), nullptr, vocab_size_, where, cutter);
  } else if (kind == ".safetensors") {
    add_safetensors(file, vocab_size_, cutter);
  } else {
    const std::string text = read_file(file);
    if (text.empty()) fail("{}: the text is empty", where);
    cutter.add(encode(tokenizer(), text, where));
  }
  return cutter.windows(where);
}

}  // namespace aqhost
