#include "run/run_identity.h"

#include <algorithm>
#include <set>

#include "base/sha256.h"
#include "checkpoint/safetensors.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

Json identity_of(const ModuleRecipe& recipe, const std::string& what) {
  Json json{{"format", what}, {"options", recipe.options}, {"algorithm", recipe.algorithm}};
  if (recipe.algorithm != "gptq") return json;
  json["routing_power"] = recipe.routing_power;
  if (recipe.refine_steps > 0) json["refine"] = {recipe.refine_steps, recipe.refine_batch};
  return json;
}

Json identity_of(const RunSettings& settings) {
  return {{"sequential", settings.sequential},
          {"actorder", settings.actorder},
          {"percdamp", settings.percdamp},
          {"error_feedback", settings.error_feedback},
          {"min_tokens", settings.min_tokens ? Json(*settings.min_tokens) : Json()},
          {"calibrate_all_experts", settings.calibrate_all_experts}};
}

/// The files by name: their sizes, and the SHA-256 of what tells how they are laid out.
Json identity_of(const Source& source) {
  Json files{{"config.json", sha256_of_text(to_text(source.config()))}};
  for (const SafetensorsFile* file : source.files())
    files[file->path().filename().string()] = {{"bytes", file->size()},
                                               {"header", file->header_sha256()},
                                               {"sample", file->sample_sha256()}};
  return files;
}

}  // namespace

Json run_identity(const Source& source, const Model& model, const Plan& plan,
                  const std::vector<PluginInfo>& plugins, int64_t max_shard_bytes,
                  const at::Tensor& windows, at::ScalarType dtype, at::Device device,
                  uint64_t seed) {
  Json identity{{"generator", "aqhost"},
                {"version", AQHOST_VERSION},
                {"abi", {AQ_ABI_MAJOR, AQ_ABI_MINOR}},
                {"layers", model.desc().n_layers},
                {"source", identity_of(source)},
                {"container", plan.container->name()},
                {"max_shard_bytes", max_shard_bytes}};
  identity["plan"] = Json::object();
  std::set<std::string> used{model.id()};
  for (const PlannedModule& m : plan.modules) {
    if (!m.format) continue;
    used.insert(m.format->id());
    if (m.activations) used.insert(m.activations->id());
    identity["plan"][m.module->name] = identity_of(m.recipe, describe(m));
  }
  for (const PluginInfo& plugin : plugins)
    if (plugin.refused.empty() && used.contains(plugin.id))
      identity["plugins"][plugin.id] = plugin.sha256;
  if (!windows.defined()) return identity;
  identity["settings"] = identity_of(plan.settings);
  if (std::any_of(plan.modules.begin(), plan.modules.end(),
                  [](const PlannedModule& m) { return m.refined(); }))
    identity["calibration"]["seed"] = seed;  // of learned rounding
  identity["dtype"] = dtype == at::kBFloat16 ? "bfloat16" : "float32";
  identity["device"] = device.is_cpu() ? "cpu" : "cuda";
  const at::Tensor ids = windows.contiguous();
  Json& calibration = identity["calibration"];
  calibration["windows"] = windows.size(0);
  calibration["seqlen"] = windows.size(1);
  calibration["token_ids"] = sha256_of(std::as_bytes(span_of<int64_t>(ids)));
  return identity;
}

}  // namespace aqhost
