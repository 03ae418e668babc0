#include "export/container.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/field.h"
#include "export/autogptq.h"
#include "export/compressed_tensors.h"
#include "export/gguf.h"

namespace aqhost {
namespace {

/// The "quantization_config" in the config.json of `directory`; null if it is missing or empty.
Field quantization_config_of(const Json& config, const std::string& directory) {
  constexpr const char* kKey = "quantization_config";
  static const Json kNone;
  const std::string file = directory + "/config.json";
  const Field found = Field(config, file)[kKey];
  const bool empty = found.json().is_object() && found.json().empty();
  return empty ? Field(kNone, file, kKey) : found;
}

}  // namespace

void Container::refuse_to_read() const {
  fail("{} is a container of files that aqhost writes and does not read", name());
}

Json Container::config(const std::vector<StoredModule>& /*modules*/) const { refuse_to_read(); }

std::vector<StoredModule> Container::modules(const Source& /*stored*/,
                                             const Registry& /*registry*/) const {
  refuse_to_read();
}

QuantizedMatrix Container::unpack(const StoredModule& /*module*/,
                                  std::span<const std::span<const std::byte>> /*tensors*/) const {
  refuse_to_read();
}

void Container::check_config(const Source& /*stored*/, const std::set<std::string>& /*quantized*/,
                             const Model& /*model*/) const {
  refuse_to_read();
}

std::span<const Container* const> containers() {
  static const std::array<const Container*, 3> kContainers{&compressed_tensors(), &autogptq(),
                                                           &gguf()};
  return kContainers;
}

const Container* find_container(std::string_view name) {
  const auto all = containers();
  const auto it = std::find_if(all.begin(), all.end(),
                               [name](const Container* c) { return c->name() == name; });
  return it == all.end() ? nullptr : *it;
}

std::string container_names(std::string_view quote) {
  std::string names;
  for (const Container* c : containers())
    if (&c->of_checkpoint() == c)
      names += fmt::format("{}{}{}{}", names.empty() ? "" : " or ", quote, c->name(), quote);
  return names;
}

bool is_quantized(const Json& config) { return !quantization_config_of(config, "").is_null(); }

std::string quant_method(const Json& config, const std::string& directory) {
  return quantization_config_of(config, directory)["quant_method"].text();
}

const Container& container_of(const Json& config, const std::string& directory) {
  const Field quantization = quantization_config_of(config, directory);
  const std::string method = quant_method(config, directory);
  const Container* named = find_container(method);
  if (named != nullptr && &named->of_checkpoint() == named) return *named;
  // formats of plugins can have a quant_method of their own, in the config of compressed-tensors
  if (!quantization["config_groups"].is_null()) return compressed_tensors();
  fail(
      "{}.quant_method is \"{}\", expected {}; a model to be quantized may also have \"fp8\" or "
      "\"mxfp4\"",
      quantization.where(), method, container_names("\""));
}

std::set<std::string> packed_modules(const Source& stored,
                                     bool (*is_packed)(std::string_view suffix)) {
  std::set<std::string> names;
  for (const TensorInfo& info : stored.tensors()) {
    const std::size_t dot = info.name.rfind('.');
    if (dot != std::string::npos && is_packed(std::string_view(info.name).substr(dot + 1)))
      names.insert(info.name.substr(0, dot));
  }
  return names;
}

int64_t stored_bytes(const std::vector<TensorInfo>& tensors) {
  int64_t bytes = 0;
  for (const TensorInfo& info : tensors)
    if (info.name != "weight_shape" && info.name != "g_idx") bytes += info.nbytes();
  return bytes;
}

}  // namespace aqhost
