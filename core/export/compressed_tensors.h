#pragma once

#include "export/container.h"

namespace aqhost {

/// The container of compressed-tensors 0.20. Formats choose their own tensors (Format::pack()); the
/// global scale of a module's activations is the tensor "input_global_scale". The formats of a
/// checkpoint are recognised from config.json alone: every format plugin is asked for its config()
/// under the options of a config group.
const Container& compressed_tensors();

}  // namespace aqhost
