#include "tokenizer/post_processor.h"

#include "base/error.h"

namespace aqhost {

PostProcessor::PostProcessor(const Field& config) {
  if (!config.is_null()) add(config);
}

void PostProcessor::add(const Field& config) {
  const Field kind = config["type"];
  if (kind.text() == "Sequence") {
    for (const Field& item : config["processors"].items()) add(item);
  } else if (kind.text() == "TemplateProcessing") {
    // HF would take the result of the first template for a pair of texts.
    if (templated_) fail("{}: a second TemplateProcessing is not supported", config.where());
    templated_ = true;
    add_template(config);
  } else if (kind.text() != "ByteLevel") {
    kind.unsupported();
  }
}

void PostProcessor::add_template(const Field& config) {
  bool text_seen = false;
  for (const Field& part : config["single"].items()) {
    if (part["SpecialToken"].is_null()) {
      const Field name = part["Sequence"]["id"];
      if (name.text() != "A" || text_seen) name.unsupported();
      text_seen = true;
      continue;
    }
    const Field special = config["special_tokens"][part["SpecialToken"]["id"].text()];
    for (const Field& id : special["ids"].items()) {
      if (id.integer() < 0 || id.integer() > INT32_MAX) id.unsupported();
      (text_seen ? suffix_ : prefix_).push_back(static_cast<int32_t>(id.integer()));
    }
  }
  if (!text_seen) fail("{}: expected a Sequence \"A\" among the parts", config["single"].where());
}

}  // namespace aqhost
