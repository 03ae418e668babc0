// What tensor parallelism needs of the widths of a model, in vLLM (model_executor/layers/linear.py,
// fused_moe/layer.py and the create_weights() of each scheme) and in SGLang (srt/layers), which has
// taken over these layers. Only the source was read.
#include <fmt/format.h>

#include <array>

#include "plan/engine_rules.h"

namespace aqhost {
namespace {

/// The largest usual group that divides `inputs`; 0 if there is none.
int64_t fitting_group(int64_t inputs) {
  for (const int64_t group : {128, 64, 32, 16})
    if (inputs % group == 0) return group;
  return 0;
}

/// A module whose input is divided, because what comes before it is divided by its outputs.
bool has_divided_input(const PlannedModule& m) {
  const int32_t role = m.module->key.role;
  return role == AQ_ROLE_ATTN_O || role == AQ_ROLE_FFN_DOWN || role == AQ_ROLE_DELTA_OUT;
}

void check_heads(const Export& e, int32_t gpus, Findings& f) {
  for (int32_t l = 0; l < e.model.desc().n_layers; l++) {
    const AttentionDesc a = e.model.attention(l, 1);
    const std::string where = fmt::format("layer {}", l);
    if (a.n_heads % gpus != 0)
      f.refuse(where, fmt::format("{} heads are not divided evenly over {} GPUs", a.n_heads, gpus));
    else if (a.kind == AQ_ATTN_DELTA && a.n_kv_heads % gpus != 0)
      f.refuse(where, fmt::format("{} key heads of the delta rule are not divided evenly over {} "
                                  "GPUs",
                                  a.n_kv_heads, gpus));
    else if (a.kind == AQ_ATTN_STANDARD && a.n_kv_heads % gpus != 0 && gpus % a.n_kv_heads != 0)
      f.refuse(where, fmt::format("{} key and value heads are not divided evenly over {} GPUs, and "
                                  "cannot be repeated evenly",
                                  a.n_kv_heads, gpus));
  }
}

}  // namespace

void check_split(const Export& exported, int32_t gpus, Findings& findings) {
  check_heads(exported, gpus, findings);
  for (const PlannedModule& m : exported.plan.modules) {
    if (!has_divided_input(m)) continue;
    const std::string& name = m.module->name;
    const int64_t inputs = m.module->in_features;
    if (inputs % gpus != 0) {
      findings.refuse(name,
                      fmt::format("{} inputs are not divided evenly over {} GPUs", inputs, gpus));
      continue;
    }
    const int64_t group = m.format ? m.format->desc().group_size : 0, own = inputs / gpus;
    if (group <= 0 || own % group == 0) continue;
    const int64_t fits = fitting_group(own);
    findings.refuse(
        name, fmt::format("each of {} GPUs has {} inputs, which are no whole groups of {}{}", gpus,
                          own, group, fits == 0 ? "" : fmt::format("; groups of {} fit", fits)));
  }
}

}  // namespace aqhost
