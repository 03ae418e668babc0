#pragma once

#include <string>

#include "export/container.h"

namespace aqhost {

/// The container GGUF of llama.cpp, version 3. A module is stored as the rows of its matrix, each a
/// sequence of blocks (gguf_blocks.h), and in NVFP4 with the scale of the matrix. A GGUF file is
/// made of a finished export (write_gguf()), because it holds the experts of a layer in one tensor,
/// and rows in another order than the checkpoint. The layouts of blocks are functions of the host
/// for now; a format of a plugin gets a type if its description is that of one of these types.
const Container& gguf();

/// The name of the file that quantize --export gguf writes beside the export's own files.
inline constexpr const char* kGgufFile = "model.gguf";

/// Whether a file has that name, or is one of several: "model-00001-of-00003.gguf".
bool is_gguf_file(const std::string& name);

}  // namespace aqhost
