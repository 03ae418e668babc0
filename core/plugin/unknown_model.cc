#include "plugin/unknown_model.h"

#include <algorithm>
#include <array>

namespace aqhost {
namespace {

constexpr std::array kOthers{"num_experts_per_tok",
                             "moe_topk",
                             "moe_k",
                             "n_shared_experts",
                             "num_shared_experts",
                             "shared_expert_intermediate_size",
                             "moe_intermediate_size",
                             "first_k_dense_replace",
                             "num_hidden_layers",
                             "hidden_size"};

}  // namespace

UnknownModel describe_unknown(const Json& config) {
  const Json& text = config.contains("text_config") && config["text_config"].is_object()
                         ? config["text_config"]
                         : config;
  UnknownModel model;
  const auto type = config.find("model_type");
  model.why = type == config.end() || type->is_null()
                  ? "there is no model_type, and no plugin knows the rest"
                  : "no plugin knows model_type " + type->dump();
  model.found = Json::object();
  const auto take = [&](const char* key) {
    if (text.contains(key) && text[key].is_number()) model.found[key] = text[key];
  };
  std::for_each(kExpertKeys.begin(), kExpertKeys.end(), take);
  const bool moe = std::any_of(model.found.begin(), model.found.end(),
                               [](const Json& experts) { return experts > 1; });
  std::for_each(kOthers.begin(), kOthers.end(), take);
  model.kind = moe ? "generic_moe" : "standard";
  model.advice =
      moe ? "it needs an adapter plugin of its own, unless it is a known family under another "
            "name: then choose that with --model-type"
          : "aqhost is for models with experts; a dense one needs another tool, or an adapter "
            "plugin of its own";
  return model;
}

}  // namespace aqhost
