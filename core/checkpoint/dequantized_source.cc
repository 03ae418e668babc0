#include "checkpoint/dequantized_source.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "checkpoint/convert.h"
#include "checkpoint/fp8_blocks.h"
#include "checkpoint/mxfp4_experts.h"
#include "checkpoint/reader.h"

namespace aqhost {

FindEncoded find_encoding(std::string_view quant_method) {
  if (quant_method == "fp8") return find_fp8_blocks;
  if (quant_method == "mxfp4") return find_mxfp4_experts;
  return nullptr;
}

std::unique_ptr<Source> open_checkpoint(const std::filesystem::path& directory) {
  auto reader = std::make_unique<Reader>(directory);
  const auto settings = reader->config().find("quantization_config");
  if (settings == reader->config().end() || !settings->is_object()) return reader;
  const auto method = settings->find("quant_method");
  if (method == settings->end() || !method->is_string()) return reader;
  const FindEncoded find = find_encoding(method->get_ref<const std::string&>());
  if (find == nullptr) return reader;
  std::vector<EncodedTensor> encoded = find(*reader);
  return std::make_unique<DequantizedSource>(std::move(reader), std::move(encoded));
}

DequantizedSource::DequantizedSource(std::unique_ptr<const Source> stored,
                                     std::vector<EncodedTensor> encoded)
    : stored_(std::move(stored)) {
  std::set<std::string> parts;
  for (EncodedTensor& tensor : encoded) {
    parts.insert(tensor.parts.begin(), tensor.parts.end());
    infos_.push_back(tensor.dense);
    encoded_.emplace(tensor.dense.name, std::move(tensor));
  }
  for (const TensorInfo& info : stored_->tensors()) {
    if (parts.contains(info.name)) continue;
    if (const EncodedTensor* twice = find_encoded(info.name))
      fail("{}: tensor {} is stored twice, dense and quantized as {}; delete one of them",
           stored_->file_of(info.name), info.name, fmt::join(twice->parts, " and "));
    infos_.push_back(info);
  }
  std::sort(infos_.begin(), infos_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
}

const EncodedTensor* DequantizedSource::find_encoded(std::string_view name) const {
  const auto it = encoded_.find(name);
  return it == encoded_.end() ? nullptr : &it->second;
}

const TensorInfo* DequantizedSource::find(std::string_view name) const {
  const auto it =
      std::lower_bound(infos_.begin(), infos_.end(), name,
                       [](const TensorInfo& a, std::string_view b) { return a.name < b; });
  return it != infos_.end() && it->name == name ? &*it : nullptr;
}

void DequantizedSource::read_f32(std::string_view name, int64_t begin, std::span<float> out) const {
  const EncodedTensor* tensor = find_encoded(name);
  if (tensor == nullptr) {
    if (find(name) == nullptr) fail("{}: there is no tensor {}", directory(), name);
    return stored_->read_f32(name, begin, out);
  }
  const auto count = static_cast<int64_t>(out.size()), all = tensor->dense.numel();
  if (begin < 0 || begin > all || count > all - begin)
    fail("{}: tensor {}: elements {} to {} of {} were asked for", file_of(name), name, begin,
         begin + count, all);
  tensor->decode(*stored_, begin, out);
  if (all_finite(out)) return;
  for (std::size_t i = 0; i < out.size(); i++)
    if (!all_finite(out.subspan(i, 1)))
      fail("{}: tensor {}: element {}, which is stored in {}, is {}", file_of(name), name,
           begin + static_cast<int64_t>(i), fmt::join(tensor->parts, " and "), out[i]);
}

bool DequantizedSource::read_stored(std::string_view name, int64_t begin,
                                    std::span<std::byte> out) const {
  return find_encoded(name) == nullptr && find(name) != nullptr &&
         stored_->read_stored(name, begin, out);
}

int64_t DequantizedSource::stored_bytes(std::string_view name) const {
  const EncodedTensor* tensor = find_encoded(name);
  if (tensor == nullptr) return stored_->stored_bytes(name);
  int64_t bytes = 0;
  for (const std::string& part : tensor->parts) bytes += stored_->stored_bytes(part);
  return bytes;
}

StoredSize DequantizedSource::stored_size() const {
  StoredSize size = stored_->stored_size();
  if (encoded_.empty()) return size;
  size.weight_bytes = size.weights = 0;
  for (const auto& [name, tensor] : encoded_) {
    size.weight_bytes += stored_bytes(name);
    size.weights += tensor.dense.numel();
  }
  return size;
}

std::string DequantizedSource::file_of(std::string_view name) const {
  const EncodedTensor* tensor = find_encoded(name);
  return stored_->file_of(tensor == nullptr ? name : tensor->parts.front());
}

}  // namespace aqhost
