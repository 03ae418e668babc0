#include "plan/export_case.h"

#include <filesystem>

#include "base/error.h"
#include "export/gguf_blocks.h"

namespace aqhost {
namespace {

/// Whether this is one of aqhost's own formats, which no other package knows.
bool unknown_to_all(const PlannedModule& m) {
  return m.format->config().contains("quant_method") &&
         m.format->config()["quant_method"] != "compressed-tensors";
}

/// The Python files of the folder, if config.json names classes in some.
std::set<std::string> own_code(const Source& original) {
  std::set<std::string> files;
  if (!original.config().contains("auto_map")) return files;
  std::error_code ignored;
  for (std::filesystem::directory_iterator it(original.directory(), ignored), end; it != end;
       it.increment(ignored)) {
    if (ignored) break;
    if (it->path().extension() == ".py" && it->is_regular_file(ignored))
      files.insert(it->path().filename().string());
  }
  return files;
}

void add_biases(const Model& model, std::set<std::string>& options) {
  for (const Module& m : model.modules()) {
    if (!m.bias) continue;
    const int32_t role = m.key.role, fused = fused_role(role);
    if (fused == AQ_ROLE_ATTN_Q || fused == AQ_ROLE_ATTN_Q_A) options.insert("qkv_bias");
    if (role == AQ_ROLE_ATTN_O) options.insert("out_bias");
    if (role == AQ_ROLE_LM_HEAD) options.insert("head_bias");
    if (m.key.expert < 0 && (fused == AQ_ROLE_FFN_GATE || role == AQ_ROLE_FFN_DOWN))
      options.insert("ffn_bias");
  }
}

void add_attention(const Model& model, std::set<std::string>& options) {
  const AttentionDesc a = model.attention(0, 1);
  const ModelDesc& desc = model.desc();
  if (a.kind == AQ_ATTN_LATENT) {
    options.insert("latent");
    if (a.latent_eps != desc.norm_eps) options.insert("latent_norm_eps");
    if (!a.rope_interleaved) options.insert("rotated_halves");
  }
  if (a.kind == AQ_ATTN_STANDARD) {
    if (a.clip_qkv > 0) options.insert("clip_qkv");
    if (int64_t{a.n_heads} * a.head_dim != desc.hidden_size) options.insert("head_dim");
  }
  if (a.rope_dim() != a.head_dim) options.insert("partial_rotation");
  for (int32_t l = 0; l < desc.n_layers; l++)
    if ((model.attention(l, 1).sliding_window > 0) != (l % 2 == 0)) options.insert("other_windows");
}

void add_ffns(const Model& model, std::set<std::string>& options) {
  for (int32_t l = 0; l < model.desc().n_layers; l++) {
    const FfnDesc& ffn = model.ffn(l);
    if (ffn.activation != AQ_ACT_SILU_GLU && ffn.activation != AQ_ACT_CLAMPED_SWIGLU)
      options.insert("activation");
    if (ffn.kind == AQ_FFN_MOE && ffn.norm_topk) options.insert("norm_topk_prob");
  }
}

/// How a module is stored, as text. Two modules that are stored alike have equal texts.
std::string scheme(const PlannedModule& m) {
  return m.format ? m.format->config().dump() + m.recipe.aq : "";
}

/// The same for most modules that are stored alike, and quicker.
std::pair<const Format*, std::string> quick_scheme(const PlannedModule& m) {
  return {m.format.get(), m.recipe.aq};
}

}  // namespace

bool same_scheme(const PlannedModule& a, const PlannedModule& b) {
  return quick_scheme(a) == quick_scheme(b) || scheme(a) == scheme(b);
}

ModelCase model_case(const Export& exported) {
  const Model& model = exported.model;
  const ModelDesc& desc = model.desc();
  ModelCase result{.family = model.id(),
                   .config = exported.original.config(),
                   .code = own_code(exported.original),
                   .hidden_size = desc.hidden_size,
                   .latent_eps = model.attention(0, 1).latent_eps,
                   .container = exported.plan.container->name()};
  const Json& config = result.config;
  if (const Json type = config.value("model_type", Json()); type.is_string()) result.type = type;
  if (desc.tied_embeddings) result.options.insert("tied_head");
  if (desc.norm_eps != 1e-5F) result.options.insert("norm_eps");
  const Json rope = config.value("rope_scaling", config.value("rope_parameters", Json()));
  if (rope.is_object() && rope.value("rope_type", rope.value("type", Json())) != "yarn")
    result.options.insert("other_rope");
  add_biases(model, result.options);
  add_attention(model, result.options);
  add_ffns(model, result.options);
  std::set<std::string> schemes, storages;
  std::set<std::pair<const Format*, std::string>> seen;
  for (const PlannedModule& m : exported.plan.modules) {
    if (!m.format || !seen.insert(quick_scheme(m)).second) continue;
    schemes.insert(scheme(m));
    storages.insert(module_case(m, *exported.plan.container).storage);
  }
  result.schemes = static_cast<int64_t>(schemes.size());
  result.storages = static_cast<int64_t>(storages.size());
  return result;
}

ModuleCase module_case(const PlannedModule& m, const Container& container) {
  ModuleCase result{.role = m.module->key.role,
                    .expert = m.module->key.expert >= 0,
                    .quantized = m.format != nullptr,
                    .storage = "dense",
                    .inputs = m.recipe.aq,
                    .rows = m.module->out_features,
                    .cols = m.module->in_features,
                    .text = describe(m)};
  if (!m.format) return result;
  result.storage = unknown_to_all(m) ? "unknown" : container.format_name(*m.format);
  result.group = m.format->desc().group_size;
  const Json weights = m.format->config().value("weights", Json::object());
  result.bits = weights.value("num_bits", int64_t{0});
  result.symmetric = weights.value("symmetric", true);
  return result;
}

std::string gguf_problem(const PlannedModule& m) {
  try {
    (void)gguf_type(*m.format, m.module->in_features);
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

}  // namespace aqhost
