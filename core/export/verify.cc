#include "export/verify.h"

#include <memory>
#include <set>

#include "base/error.h"
#include "base/interrupt.h"
#include "checkpoint/reader.h"
#include "export/container.h"
#include "export/decoded_checkpoint.h"
#include "plugin/tensor_check.h"

namespace aqhost {

VerifySummary verify(const std::filesystem::path& directory, const Registry& registry,
                     const std::string& type) {
  auto reader = std::make_unique<Reader>(directory);
  const auto tensors = static_cast<int64_t>(reader->tensors().size());
  if (!is_quantized(reader->config()))
    fail("{}: is not quantized: config.json has no quantization_config", directory.string());
  const DecodedCheckpoint checkpoint(std::move(reader), registry);
  const auto model = registry.create_model(checkpoint, type);
  checkpoint.check_config(*model);

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
  const StoredSize size = checkpoint.stored_size();
  summary.weights = size.weights;
  summary.bits_per_weight = size.bits_per_weight();
  return summary;
}

}  // namespace aqhost
