// A recipe applied to a small model by the shipped plugins: refused with an Error, or a plan whose
// modules can be stored. The first byte chooses the container.

#include <cstdint>

#include "base/error.h"
#include "bytes.h"
#include "check.h"
#include "checkpoint/reader.h"
#include "export/autogptq.h"
#include "plan/plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace aqhost;
  static const Registry registry({AQ_PLUGINS}, {.trust = true, .probe = false});
  static const Reader source(AQ_TESTS_DIR "/models/olmoe-tiny");
  static const auto model = registry.create_model(source, "auto");
  Bytes input(data, size);
  const Container& container = input.byte() == 'g' ? autogptq() : compressed_tensors();
  try {
    const Recipe recipe = Recipe::parse(std::string(input.rest()), "fuzz");
    const Plan plan = make_plan(*model, recipe, registry, "", container);
    check(plan.modules.size() == model->modules().size());
    for (const PlannedModule& planned : plan.modules) {
      check((planned.format == nullptr) == planned.packed.empty());
      check(planned.format == nullptr || planned.stored_bits() > 0);
      check(!describe(planned).empty());
    }
    check(plan.bits_per_weight() >= 0);
  } catch (const Error&) {
  }
  return 0;
}
