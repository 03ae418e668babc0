// A recipe: refused with an Error, or one that answers for every module.

#include <cstdint>

#include "base/error.h"
#include "check.h"
#include "config/recipe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace aqhost;
  const std::vector<std::string> modules{"model.layers.0.mlp.experts.3.up_proj",
                                         "model.layers.1.mlp.gate", "lm_head"};
  try {
    const Recipe recipe =
        Recipe::parse(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
    for (const std::string& module : modules) check(!recipe.resolve(module).wq.empty());
    for (const auto& [id, where] : recipe.formats()) check(where.starts_with("fuzz:"));
    check(recipe.lint(modules).size() <= size);
  } catch (const Error&) {
  }
  return 0;
}
