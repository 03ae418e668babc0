#pragma once

#include "export/gguf_family.h"
#include "export/gguf_model.h"

namespace aqhost {

/// Appends to `result`, whose tensors are known, the key-values of a model that
/// check_gguf_options() accepts, and notes what llama.cpp computes otherwise.
void add_gguf_keys(const Source& source, const Model& model, const GgufFamily& family,
                   GgufModel& result);

}  // namespace aqhost
