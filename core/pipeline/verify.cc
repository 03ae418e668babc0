#include "pipeline/verify.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/interrupt.h"
#include "export/decoded_checkpoint.h"
#include "export/gptq.h"
#include "export/quantization_config.h"

namespace aqhost {
namespace {

constexpr int64_t kReadChunk = int64_t{1} << 20;

bool is_float(DType type) {
  return type == DType::kF16 || type == DType::kBF16 || type == DType::kF32;
}

void check_module(const DecodedCheckpoint& checkpoint, const StoredModule& module) {
  const std::vector<float> values = module.format->dequantize(checkpoint.read(module));
  for (std::size_t i = 0; i < values.size(); i++)
    if (!std::isfinite(values[i]))
      fail("{}: {}: weight [{}, {}] decodes to {}", checkpoint.directory(), module.name,
           i / static_cast<std::size_t>(module.cols), i % static_cast<std::size_t>(module.cols),
           values[i]);
}

/// Reading checks that every value is finite.
void check_dense(const DecodedCheckpoint& checkpoint, const TensorInfo& info) {
  std::vector<float> values;
  for (int64_t begin = 0; begin < info.numel(); begin += kReadChunk) {
    values.resize(static_cast<std::size_t>(std::min(kReadChunk, info.numel() - begin)));
    checkpoint.read_f32(info.name, begin, values);
  }
}

/// A module that "dynamic" does not leave out is stored quantized, if the model would have been.
void check_gptq(const DecodedCheckpoint& checkpoint, const Model& model) {
  const std::string where = checkpoint.directory() + "/config.json";
  for (const Module& module : model.modules())
    if (module.quantize && checkpoint.find_module(module.name) == nullptr &&
        gptq_module(checkpoint.config().at("quantization_config"), module.name, where))
      fail("{}: {} is stored dense, but quantization_config does not leave it out",
           checkpoint.directory(), module.name);
}

/// A module under "ignore" is dense, and one that a group covers and the model would have quantized
/// is stored so.
void check_config(const DecodedCheckpoint& checkpoint, const Model& model) {
  const Json& config = checkpoint.config().at("quantization_config");
  if (checkpoint.is_gptq()) return check_gptq(checkpoint, model);
  const auto groups = parse_quantization_config(config, checkpoint.directory() + "/config.json");
  std::set<std::string> ignored, stored;
  for (const Json& name : config.value("ignore", Json::array()))
    ignored.insert(name.get<std::string>());
  for (const StoredModule& m : checkpoint.modules()) {
    stored.insert(m.name);
    if (ignored.contains(m.name))
      fail("{}: {} is stored quantized, but quantization_config.ignore lists it",
           checkpoint.directory(), m.name);
  }
  for (const Module& module : model.modules()) {
    if (stored.contains(module.name) || !module.quantize) continue;
    if (!ignored.contains(module.name) && find_group(groups, module.name) != nullptr)
      fail("{}: {} is stored dense, but a group of quantization_config covers it",
           checkpoint.directory(), module.name);
  }
}

}  // namespace

VerifySummary verify(const std::filesystem::path& directory, const Registry& registry) {
  auto reader = std::make_unique<Reader>(directory);
  const auto tensors = static_cast<int64_t>(reader->tensors().size());
  if (!reader->config().contains("quantization_config"))
    fail("{}: is not quantized: config.json has no quantization_config", directory.string());
  const DecodedCheckpoint checkpoint(std::move(reader), registry);
  const auto model = registry.create_model(checkpoint, "auto");
  check_config(checkpoint, *model);

  VerifySummary summary;
  summary.model_type = model->id();
  summary.tensors = tensors;
  std::set<std::string> decoded;
  for (const StoredModule& module : checkpoint.modules()) {
    check_interrupt();
    check_module(checkpoint, module);
    decoded.insert(module.name + ".weight");
    summary.formats[module.format->id()]++;
  }
  for (const TensorInfo& info : checkpoint.tensors())
    if (!decoded.contains(info.name) && is_float(info.dtype)) check_dense(checkpoint, info);
  summary.modules = static_cast<int64_t>(checkpoint.modules().size());
  summary.weights = checkpoint.packed_weights();
  summary.bits_per_weight = 8.0 * static_cast<double>(checkpoint.packed_bytes()) /
                            static_cast<double>(std::max<int64_t>(1, summary.weights));
  return summary;
}

}  // namespace aqhost
