#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/counted.h"
#include "base/error.h"
#include "command.h"
#include "export/container.h"
#include "export/decoded_checkpoint.h"
#include "plugin/unknown_model.h"

namespace aqhost {
namespace {

struct LayerKinds {
  int32_t moe = 0, dense = 0;
  FfnDesc first_moe;
};

LayerKinds count_layers(const Model& model) {
  LayerKinds kinds;
  for (int32_t l = 0; l < model.desc().n_layers; l++) {
    if (model.ffn(l).kind != AQ_FFN_MOE) {
      kinds.dense++;
    } else if (kinds.moe++ == 0) {
      kinds.first_moe = model.ffn(l);
    }
  }
  return kinds;
}

int64_t parameters(const Source& source) {
  int64_t n = 0;
  for (const TensorInfo& info : source.tensors()) n += info.numel();
  return n;
}

/// The parameters that are used for one token: all except those of the experts that it is not
/// routed to, and tensors that are only copied.
int64_t active_parameters(const Source& source, const Model& model) {
  int64_t n = parameters(source);
  for (const Model::Copied& copied : model.copied())
    for (const std::string& name : copied.tensors) n -= source.find(name)->numel();
  for (const Module& module : model.modules()) {
    if (module.key.expert < 0) continue;
    const FfnDesc& ffn = model.ffn(module.key.layer);
    if (module.key.expert >= ffn.top_k) n -= module.out_features * module.in_features;
  }
  return n;
}

/// What a checkpoint contains besides what is run, by kind.
Json copied_parts(const Source& source, const Model& model) {
  Json parts = Json::array();
  for (const Model::Copied& copied : model.copied()) {
    if (copied.tensors.empty()) continue;
    int64_t bytes = 0;
    for (const std::string& name : copied.tensors) bytes += source.find(name)->nbytes();
    const auto count = static_cast<int64_t>(copied.tensors.size());
    const auto same = std::find_if(parts.begin(), parts.end(),
                                   [&](const Json& part) { return part["what"] == copied.what; });
    if (same == parts.end()) {
      parts.push_back({{"what", copied.what},
                       {"prefixes", {copied.prefix}},
                       {"tensors", count},
                       {"bytes", bytes}});
    } else {
      (*same)["prefixes"].push_back(copied.prefix);
      (*same)["tensors"] = (*same)["tensors"].get<int64_t>() + count;
      (*same)["bytes"] = (*same)["bytes"].get<int64_t>() + bytes;
    }
  }
  return parts;
}

Json describe(const Source& source, const Model& model, const ModelMatch& match) {
  const LayerKinds kinds = count_layers(model);
  const AttentionDesc attention = model.attention(0, 1);
  const FfnDesc& moe = kinds.first_moe;
  return {{"family", model.id()},
          {"score", match.score},
          {"why", match.why},
          {"layers", model.desc().n_layers},
          {"moe_layers", kinds.moe},
          {"dense_layers", kinds.dense},
          {"hidden_size", model.desc().hidden_size},
          {"vocab_size", model.desc().vocab_size},
          {"heads", attention.n_heads},
          {"kv_heads", attention.n_kv_heads},
          {"head_dim", attention.head_dim},
          {"experts", moe.n_experts},
          {"top_k", moe.top_k},
          {"expert_size", moe.inner_size},
          {"shared_size", moe.shared_size},
          {"modules", model.modules().size()},
          {"parameters", parameters(source)},
          {"active_parameters", active_parameters(source, model)},
          {"copied", copied_parts(source, model)},
          {"extra_tensors", model.extra_tensors()},
          {"quantized", is_quantized(source.config())}};
}

void print(const Json& d) {
  const auto number = [&d](const char* key) { return d[key].get<int64_t>(); };
  fmt::print("family      {} ({} %: {})\n", d["family"].get<std::string>(), number("score"),
             d["why"].get<std::string>());
  fmt::print("layers      {} ({} with experts, {} dense), hidden {}, vocabulary {}\n",
             number("layers"), number("moe_layers"), number("dense_layers"), number("hidden_size"),
             number("vocab_size"));
  fmt::print("attention   {} heads of {}, {} for keys and values\n", number("heads"),
             number("head_dim"), number("kv_heads"));
  fmt::print("experts     {} per layer, top {}, inner size {}{}\n", number("experts"),
             number("top_k"), number("expert_size"),
             number("shared_size") > 0 ? fmt::format(", shared {}", number("shared_size")) : "");
  fmt::print("modules     {}\n", number("modules"));
  fmt::print("parameters  {}, {} of them active per token\n", with_commas(number("parameters")),
             with_commas(number("active_parameters")));
  for (const Json& part : d["copied"])
    fmt::print("copied      {} tensors of {} ({}), which are never run\n",
               part["tensors"].get<int64_t>(), part["what"].get<std::string>(),
               format_bytes(part["bytes"].get<int64_t>()));
  for (const Json& name : d["extra_tensors"])
    fmt::print("not known   {}\n", name.get<std::string>());
  fmt::print("quantized   {}\n", d["quantized"].get<bool>() ? "yes" : "no");
}

/// Prints what is known of a model that no plugin describes.
void print_unknown(const UnknownModel& unknown, bool json) {
  if (json) {
    fmt::print("{}\n", to_text(Json{{"family", unknown.kind},
                                    {"why", unknown.why},
                                    {"found", unknown.found},
                                    {"advice", unknown.advice}}));
    return;
  }
  fmt::print("family      {} ({})\n", unknown.kind, unknown.why);
  for (const auto& [key, value] : unknown.found.items())
    fmt::print("{:<11} {}\n", key, to_text(value));
  fmt::print("to do       {}\n", unknown.advice);
}

void run(const ModelOptions& options) {
  const auto registry = open_registry(options);
  const auto source = open_source(options.model, *registry);
  const auto matches = registry->probe(source->config());
  if (options.model_type == "auto" && matches.empty() && !registry->model_ids().empty())
    return print_unknown(describe_unknown(source->config()), options.json);
  const auto model = open_model(*registry, *source, options);
  const auto match = std::find_if(matches.begin(), matches.end(),
                                  [&](const ModelMatch& m) { return m.id == model->id(); });
  const Json description = describe(
      *source, *model,
      match != matches.end() ? *match : ModelMatch{model->id(), "chosen by --model-type", 0});
  if (options.json)
    fmt::print("{}\n", to_text(description));
  else
    print(description);
}

}  // namespace

const Command kInspect{
    "inspect", "shows what a checkpoint is: family, layers, experts, parameters",
    "inspect --model MODEL [--json]",
    "If no plugin describes the model, the command shows what config.json says about it, and what "
    "to do.",
    prepare<ModelOptions, add_model_options, run>};

}  // namespace aqhost
