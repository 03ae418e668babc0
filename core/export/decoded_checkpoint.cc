#include "export/decoded_checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "checkpoint/dequantized_source.h"

namespace aqhost {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";

/// "a.b" for "a.b.weight".
std::string_view stem(std::string_view name) {
  return name.substr(0, name.size() - kWeightSuffix.size());
}

/// Whether a tensor is stored as its format requires. compressed-tensors writes a weight_shape of
/// I64, but checkpoints like Kimi-K2-Thinking have one of I32.
bool is_as_expected(const TensorInfo& found, const TensorInfo& expected) {
  const bool short_shape = expected.name == "weight_shape" && found.dtype == DType::kI32;
  return found.shape == expected.shape && (found.dtype == expected.dtype || short_shape);
}

/// Returns what `body` returns. If it throws an Error, puts `place` before the message.
template <typename Body>
auto at_place(const std::string& place, Body body) {
  try {
    return body();
  } catch (const Error& e) {
    fail("{}: {}", place, e.what());
  }
}

}  // namespace

DecodedCheckpoint::DecodedCheckpoint(std::unique_ptr<const Source> stored, const Registry& registry)
    : stored_(std::move(stored)),
      container_(container_of(stored_->config(), stored_->directory())),
      modules_(container_.modules(*stored_, registry)) {
  std::set<std::string> packed;
  for (const StoredModule& m : modules_) {
    for (const TensorInfo& info : checked_tensors(m)) packed.insert(m.name + "." + info.name);
    infos_.push_back({m.name + std::string(kWeightSuffix), DType::kBF16, {m.rows, m.cols}});
  }
  for (const TensorInfo& info : stored_->tensors()) {
    if (packed.contains(info.name)) continue;
    if (info.name.ends_with(kWeightSuffix) && find_module(stem(info.name)) != nullptr)
      fail("{}: {} is stored twice, quantized and as the dense tensor {}; delete one of them",
           directory(), stem(info.name), info.name);
    infos_.push_back(info);
  }
  std::sort(infos_.begin(), infos_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
}

std::vector<TensorInfo> DecodedCheckpoint::checked_tensors(const StoredModule& module) const {
  const auto plausible = [](int64_t n) { return n > 0 && n <= kMaximumFeatures; };
  if (!plausible(module.rows) || !plausible(module.cols))
    fail("{}: {}: cannot tell the shape of the matrix (weight_shape is missing or wrong)",
         directory(), module.name);
  std::vector<TensorInfo> tensors =
      at_place(directory() + ": " + module.name, [&] { return container_.tensors_of(module); });
  for (const TensorInfo& expected : tensors) {
    const TensorInfo* found = stored_->find(module.name + "." + expected.name);
    if (found == nullptr)
      fail("{}: {}.{} is missing; format {} of a {} x {} matrix needs it", directory(), module.name,
           expected.name, module.format->id(), module.rows, module.cols);
    if (!is_as_expected(*found, expected))
      fail("{}: {}.{} is {} [{}], format {} of a {} x {} matrix expects {} [{}]", directory(),
           module.name, expected.name, dtype_name(found->dtype), fmt::join(found->shape, ", "),
           module.format->id(), module.rows, module.cols, dtype_name(expected.dtype),
           fmt::join(expected.shape, ", "));
  }
  return tensors;
}

const TensorInfo* DecodedCheckpoint::find(std::string_view name) const {
  const auto it =
      std::lower_bound(infos_.begin(), infos_.end(), name,
                       [](const TensorInfo& a, std::string_view b) { return a.name < b; });
  return it != infos_.end() && it->name == name ? &*it : nullptr;
}

const StoredModule* DecodedCheckpoint::find_module(std::string_view name) const {
  const auto it =
      std::lower_bound(modules_.begin(), modules_.end(), name,
                       [](const StoredModule& a, std::string_view b) { return a.name < b; });
  return it != modules_.end() && it->name == name ? &*it : nullptr;
}

QuantizedMatrix DecodedCheckpoint::read(const StoredModule& module) const {
  std::vector<std::vector<std::byte>> content;
  for (const TensorInfo& info : container_.tensors_of(module))
    content.push_back(stored_->bytes(module.name + "." + info.name));
  const std::vector<std::span<const std::byte>> tensors(content.begin(), content.end());
  return at_place(directory() + ": " + module.name,
                  [&] { return container_.unpack(module, tensors); });
}

std::vector<float> DecodedCheckpoint::decode(const StoredModule& module) const {
  std::vector<float> values = module.format->dequantize(read(module));
  const auto wrong =
      std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
  if (wrong == values.end()) return values;
  const auto at = wrong - values.begin();
  const std::string first = module.name + "." + container_.tensors_of(module).front().name;
  fail("{}: {}: weight [{}, {}] decodes to {}", stored_->file_of(first), module.name,
       at / module.cols, at % module.cols, *wrong);
}

const StoredModule* DecodedCheckpoint::module_of(std::string_view tensor) const {
  return tensor.ends_with(kWeightSuffix) ? find_module(stem(tensor)) : nullptr;
}

bool DecodedCheckpoint::read_stored(std::string_view name, int64_t begin,
                                    std::span<std::byte> out) const {
  return module_of(name) == nullptr && find(name) != nullptr &&
         stored_->read_stored(name, begin, out);
}

int64_t DecodedCheckpoint::stored_bytes(std::string_view name) const {
  const StoredModule* module = module_of(name);
  return module == nullptr ? stored_->stored_bytes(name)
                           : aqhost::stored_bytes(container_.tensors_of(*module));
}

void DecodedCheckpoint::read_f32(std::string_view name, int64_t begin, std::span<float> out) const {
  const StoredModule* module = module_of(name);
  if (module == nullptr) return stored_->read_f32(name, begin, out);
  const std::vector<float> values = decode(*module);
  std::copy_n(values.begin() + begin, out.size(), out.begin());
}

RoundedInput DecodedCheckpoint::input_rounding(std::string_view module) const {
  const StoredModule* stored = find_module(module);
  return stored == nullptr ? RoundedInput() : container_.input_rounding(*stored_, *stored);
}

StoredSize DecodedCheckpoint::stored_size() const {
  StoredSize size{.bytes = stored_->stored_size().bytes};
  for (const StoredModule& m : modules_) {
    size.weight_bytes += aqhost::stored_bytes(container_.tensors_of(m));
    size.weights += m.rows * m.cols;
  }
  return size;
}

void DecodedCheckpoint::check_config(const Model& model) const {
  std::set<std::string> quantized;
  for (const StoredModule& m : modules_) quantized.insert(m.name);
  container_.check_config(*stored_, quantized, model);
}

std::unique_ptr<Source> open_source(const std::filesystem::path& directory,
                                    const Registry& registry) {
  std::unique_ptr<Source> source = open_checkpoint(directory);
  const Json& config = source->config();
  if (!is_quantized(config) || find_encoding(quant_method(config, source->directory())) != nullptr)
    return source;
  return std::make_unique<DecodedCheckpoint>(std::move(source), registry);
}

}  // namespace aqhost
