#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/source.h"
#include "export/gguf_blocks.h"
#include "export/gguf_file.h"
#include "plugin/model.h"

namespace aqhost {

/// What a tensor holds of its modules: their weights, their biases, or their matrix_scale()s.
enum class GgufPart : uint8_t { kWeights, kBiases, kMatrixScales };

/// The rows [first, first + rows) of every head of a matrix. `transposed`: what were rows of a head
/// are its columns.
struct HeadPart {
  int64_t first = 0, rows = 0;
  bool transposed = false;
};

/// A tensor of a GGUF file, and what it is made of.
struct GgufTensor : GgufTensorInfo {
  /// The matrices that it holds, one after another: one module, or the same one of every expert. If
  /// there are none, the content is at `ref`.
  std::vector<const Module*> modules;
  TensorRef ref;
  /// Not 0 for q and k of an architecture that rotates pairs of neighbours, where the checkpoint
  /// rotates element i of a head with element i + head_dim / 2: the number of heads whose rows are
  /// stored in that order. See stored_row().
  int64_t swapped_heads = 0;
  GgufPart part = GgufPart::kWeights;
  /// If set, the tensor [heads, ..., ...] holds this part of one module. If that is transposed and
  /// the module quantized, the tensor has its values in F32.
  std::optional<HeadPart> head_part{};
};

/// A model as llama.cpp reads it.
struct GgufModel {
  std::string architecture;  // "qwen2moe"
  GgufMetadata metadata;     // all but the tokenizer
  std::vector<GgufTensor> tensors;
  /// Tensors of the checkpoint that llama.cpp does not have, and the file does not contain.
  std::vector<std::string> left_out;
  double rounded_rope = 0;         // see GgufRope::rounded
  std::vector<std::string> notes;  // what else the user should know, in sentences without a stop
};

/// The format of a module; null if it is dense.
using GgufFormatOf = std::function<std::shared_ptr<const Format>(const Module& module)>;

/// Describes the model for llama.cpp. Nothing is read but config.json and the headers. Throws an
/// Error that names the option of the model or the module, with its format, that llama.cpp or GGUF
/// lacks. Names and shapes: src/models/*.cpp and llama-model.cpp of llama.cpp b11434.
GgufModel gguf_model(const Source& source, const Model& model, const GgufFormatOf& format_of);

/// The row of the checkpoint's matrix that is stored as row `row` of a tensor with `rows` rows.
int64_t stored_row(const GgufTensor& tensor, int64_t rows, int64_t row);

}  // namespace aqhost
