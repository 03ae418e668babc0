#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/registry.h"

namespace aqhost {

/// What the bytes of an export depend on, beside the machine: two runs of equal identity write the
/// same. Field by field, so that a difference can be named: the version of aqhost and its ABI, the
/// SHA-256 of each plugin in use, the files of the source (sizes and SHA-256 of their headers, and
/// of config.json), what each module becomes, the settings of the recipe, the container and the
/// size of its shards, and, of a run that calibrates, the type and kind of device and the SHA-256
/// of the token ids. `windows` [n, length] i64 is undefined for others. `plugins`: all that are
/// loaded.
Json run_identity(const Source& source, const Model& model, const Plan& plan,
                  const std::vector<PluginInfo>& plugins, int64_t max_shard_bytes,
                  const at::Tensor& windows, at::ScalarType dtype, at::Device device,
                  uint64_t seed);

}  // namespace aqhost
