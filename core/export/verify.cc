#include "export/verify.h"

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/interrupt.h"
#include "export/decoded_checkpoint.h"
#include "export/gptq.h"
#include "export/quantization_config.h"
#include "plugin/tensor_check.h"

namespace aqhost {
namespace {

/// Checks that every module that the model quantizes by default, and that "dynamic" does not leave
/// out, is stored quantized.
void check_gptq(const DecodedCheckpoint& checkpoint, const Model& model) {
  const GptqConfig told(checkpoint.config().at("quantization_config"),
                        checkpoint.directory() + "/config.json");
  for (const Module& module : model.modules())
    if (module.quantize && checkpoint.find_module(module.name) == nullptr && told.find(module.name))
      fail("{}: {} is stored dense, but quantization_config does not leave it out",
           checkpoint.directory(), module.name);
}

/// Checks that modules under "ignore" are dense, and that modules covered by a group are stored
/// quantized. lm_head is a linear module of the model class even if the embedding takes its place.
void check_config(const DecodedCheckpoint& checkpoint, const Model& model) {
  if (checkpoint.is_gptq()) return check_gptq(checkpoint, model);
  const Json& config = checkpoint.config().at("quantization_config");
  const std::string where = checkpoint.directory() + "/config.json";
  const auto groups = parse_quantization_config(config, where);
  const Ignored ignored(config, where);
  for (const StoredModule& m : checkpoint.modules())
    if (ignored.contains(m.name))
      fail("{}: {} is stored quantized, but quantization_config.ignore lists it",
           checkpoint.directory(), m.name);
  std::vector<std::string> names;
  for (const Module& module : model.modules()) names.push_back(module.name);
  if (model.desc().tied_embeddings) names.emplace_back(kLmHead);
  for (const std::string& name : names)
    if (checkpoint.find_module(name) == nullptr && !ignored.contains(name) &&
        find_group(groups, name) != nullptr)
      fail(
          "{}: {} is dense, but a group of quantization_config covers it and "
          "quantization_config.ignore does not list it: engines will look for packed tensors",
          checkpoint.directory(), name);
}

}  // namespace

VerifySummary verify(const std::filesystem::path& directory, const Registry& registry,
                     const std::string& type) {
  auto reader = std::make_unique<Reader>(directory);
  const auto tensors = static_cast<int64_t>(reader->tensors().size());
  if (!is_quantized(reader->config()))
    fail("{}: is not quantized: config.json has no quantization_config", directory.string());
  const DecodedCheckpoint checkpoint(std::move(reader), registry);
  const auto model = registry.create_model(checkpoint, type);
  check_config(checkpoint, *model);

  VerifySummary summary;
  summary.model_type = model->id();
  summary.tensors = tensors;
  std::set<std::string> decoded;
  for (const StoredModule& module : checkpoint.modules()) {
    check_interrupt();
    checkpoint.decode(module);
    decoded.insert(module.name + ".weight");
    summary.formats[module.format->id()]++;
  }
  check_finite(checkpoint, *model, decoded);
  checkpoint.check_unchanged();
  summary.extra_tensors = model->extra_tensors();
  summary.extra_note = model->extra_note();
  summary.modules = static_cast<int64_t>(checkpoint.modules().size());
  summary.weights = checkpoint.packed_weights();
  summary.bits_per_weight = 8.0 * static_cast<double>(checkpoint.packed_bytes()) /
                            static_cast<double>(std::max<int64_t>(1, summary.weights));
  return summary;
}

}  // namespace aqhost
