#include "calibrate/corpus.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "base/counted.h"
#include "base/error.h"
#include "calibrate/documents.h"
#include "chat/chat_template.h"
#include "checkpoint/npy.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

using Ids = std::vector<int64_t>;

/// Collects the windows cut from documents.
class Cutter {
 public:
  Cutter(int64_t length, std::optional<int64_t> separator)
      : length_(static_cast<std::size_t>(length)), separator_(separator) {}

  template <typename T>
  void add(const std::vector<T>& document) {
    if (document.empty()) return;
    file_.documents++;
    file_.tokens += static_cast<int64_t>(document.size());
    const auto used = static_cast<int64_t>(document.size() / length_ * length_);
    ids_.insert(ids_.end(), document.begin(), document.begin() + used);
    if (document.begin() + used == document.end()) return;
    if (!rest_.empty() && separator_) rest_.push_back(*separator_);
    rest_.insert(rest_.end(), document.begin() + used, document.end());
  }

  void add_chat(bool templated) {
    file_.chats++;
    file_.templated = templated;
  }

  FileWindows windows(const std::string& where) {
    const std::size_t joined = rest_.size() / length_;
    ids_.insert(ids_.end(), rest_.begin(), rest_.begin() + static_cast<int64_t>(joined * length_));
    if (ids_.empty() && file_.documents <= 1)
      fail("{}: the text has {} tokens, a window has {}: give more text or a smaller window", where,
           file_.tokens, length_);
    if (ids_.empty())
      fail("{}: the {} documents have {} tokens, a window has {}: give more or a smaller window",
           where, file_.documents, rest_.size(), length_);
    file_.joined = static_cast<int64_t>(joined);
    file_.unused = static_cast<int64_t>(rest_.size() - joined * length_);
    file_.ids = at::tensor(ids_, at::kLong).view({-1, static_cast<int64_t>(length_)});
    return file_;
  }

 private:
  std::size_t length_;
  std::optional<int64_t> separator_;
  Ids ids_, rest_;
  FileWindows file_;
};

std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text,
                            const std::string& where) {
  try {
    return tokenizer.encode(text, false);
  } catch (const Error& e) {
    fail("{}: {}", where, e.what());
  }
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
Ids integers(const LoadedTensor& t, const std::string& where) {
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

/// The range [begin, end) in which a row of a mask is 1. Throws an Error if there is more than one
/// such range.
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

/// Adds the rows of an array of ids. If `mask` is not null, it says which elements are not padding.
void add_ids(const LoadedTensor& t, const LoadedTensor* mask, int64_t vocab_size,
             const std::string& where, Cutter& cutter) {
  if (t.shape.empty() || t.shape.size() > 2)
    fail("{}: has {} dimensions, expected [tokens] or [documents, tokens]", where, t.shape.size());
  if (mask != nullptr && mask->shape != t.shape)
    fail("{}: attention_mask has another shape than the ids", where);
  if (t.dtype == DType::kBool)
    fail("{}: its elements are BOOL, expected token ids, which are integers", where);
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

/// One of the tensors of a file, with its content; `bytes` is the content of the whole file.
LoadedTensor tensor_in(std::span<const std::byte> bytes, const StoredTensor& tensor) {
  const auto content =
      bytes.subspan(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.size));
  return {tensor, {content.begin(), content.end()}};
}

void add_safetensors(std::span<const std::byte> bytes, const std::string& file, int64_t vocab_size,
                     Cutter& cutter) {
  const std::vector<StoredTensor> tensors =
      parse_safetensors(bytes, static_cast<int64_t>(bytes.size()), file).tensors;
  const auto find = [&](std::string_view name) -> std::optional<LoadedTensor> {
    for (const StoredTensor& t : tensors)
      if (t.name == name) return tensor_in(bytes, t);
    return {};
  };
  const std::string where = file + ": tensor ";
  if (const auto ids = find("input_ids")) {
    const auto mask = find("attention_mask");
    return add_ids(*ids, mask ? &*mask : nullptr, vocab_size, where + ids->name, cutter);
  }
  for (const StoredTensor& t : tensors)
    add_ids(tensor_in(bytes, t), nullptr, vocab_size, where + t.name, cutter);
}

}  // namespace

CorpusFile parse_corpus_file(const std::string& value) {
  const std::size_t equals = value.rfind('=');
  if (equals == std::string::npos || fs::exists(value)) return {value};
  if (equals == 0)
    throw UsageError(fmt::format("--calib {}: no file is named in front of the weight", value));
  CorpusFile file{value.substr(0, equals)};
  const char *begin = value.data() + equals + 1, *end = value.data() + value.size();
  const auto number = std::from_chars(begin, end, file.weight);
  if (begin == end || number.ec != std::errc() || number.ptr != end) return {value};
  if (!std::isfinite(file.weight) || file.weight <= 0)
    throw UsageError(fmt::format("--calib {}: a weight of {}, expected a number above 0", value,
                                 std::string(begin, end)));
  return file;
}

std::string describe_joined(const FileWindows& file, std::optional<int64_t> separator) {
  if (file.joined == 0) return {};
  const std::string how = separator
                              ? fmt::format("with token {} in between", *separator)
                              : "with nothing in between, for config.json names no eos_token_id,";
  return fmt::format(
      "the {} documents have {} tokens; those shorter than a window, and the ends of longer ones, "
      "are joined {} into {} of {}",
      file.documents, file.tokens, how, file.joined, counted(file.ids.size(0), "window"));
}

std::optional<int64_t> document_separator(const Json& config, int64_t vocab_size) {
  for (const char* key : {"eos_token_id", "bos_token_id"}) {
    Json id = config.is_object() ? config.value(key, Json()) : Json();
    if (id.is_array() && !id.empty()) id = Json(id.front());
    if (!id.is_number_integer()) continue;
    const auto value = id.get<int64_t>();
    if (value >= 0 && value < vocab_size) return value;
  }
  return {};
}

CorpusReader::CorpusReader(fs::path model, int64_t vocab_size, std::optional<int64_t> separator)
    : model_(std::move(model)), vocab_size_(vocab_size), separator_(separator) {}

const Tokenizer& CorpusReader::tokenizer() {
  try {
    if (!tokenizer_) tokenizer_ = Tokenizer::load(model_);
  } catch (const Error& e) {
    fail(
        "{}; token ids (.npy, .safetensors) in place of text need no tokenizer, nor does "
        "--algorithm rtn",
        e.what());
  }
  return *tokenizer_;
}

const ChatTemplate* CorpusReader::chat_template() {
  if (!chat_template_read_)
    if (auto made = ChatTemplate::load(model_))
      chat_template_ = std::make_shared<const ChatTemplate>(std::move(*made));
  chat_template_read_ = true;
  return chat_template_.get();
}

std::string CorpusReader::text_of(const JsonDocument& document) {
  if (!document.chat || chat_template() == nullptr) return document.text;
  try {
    return chat_template()->render(document.messages);
  } catch (const Error& e) {
    fail("{}: {}", document.where, e.what());
  }
}

FileWindows CorpusReader::read(const fs::path& file, int64_t length) {
  Cutter cutter(length, separator_);
  const std::string where = file.string(), content = read_calibration_file(file);
  const auto bytes = std::as_bytes(std::span(content));
  if (content.empty())
    fail("{}: the file is empty; expected text, JSON lines or token ids to calibrate on", where);
  switch (recognise(content, file)) {
    case CalibrationFile::kNpy:
      add_ids(tensor_in(bytes, parse_npy(bytes, static_cast<int64_t>(bytes.size()), where)),
              nullptr, vocab_size_, where, cutter);
      break;
    case CalibrationFile::kSafetensors:
      add_safetensors(bytes, where, vocab_size_, cutter);
      break;
    case CalibrationFile::kJson:
      for_json_documents(content, file, [&](const JsonDocument& document) {
        cutter.add(encode(tokenizer(), text_of(document), document.where));
        if (document.chat) cutter.add_chat(chat_template() != nullptr);
      });
      break;
    case CalibrationFile::kText:
      cutter.add(encode(tokenizer(), content, where));
  }
  return cutter.windows(where);
}

}  // namespace aqhost
