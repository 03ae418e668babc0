#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/source.h"
#include "export/gguf_blocks.h"
#include "export/gguf_file.h"
#include "plugin/model.h"

namespace aqhost {

/// What a tensor holds of its modules: their weights, their biases, or their matrix_scale()s.
enum class GgufPart : uint8_t { kWeights, kBiases, kMatrixScales };

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
};

/// A model as llama.cpp reads it.
struct GgufModel {
  std::string architecture;  // "qwen2moe"
  GgufMetadata metadata;     // all but the tokenizer
  std::vector<GgufTensor> tensors;
  /// Tensors of the checkpoint that llama.cpp does not have, and the file does not contain.
  std::vector<std::string> left_out;
  double rounded_rope = 0;  // see GgufRope::rounded
};

/// The format of a module; null if it is dense.
using GgufFormatOf = std::function<std::shared_ptr<const Format>(const Module& module)>;

/// Describes the model for llama.cpp, of which the families OLMoE, Mixtral, Qwen2-MoE,
/// DeepSeek-MoE, Qwen3-MoE, gpt-oss, MiniMax-M2, GLM-4.5 and Granite MoE are known here. Nothing is
/// read but config.json and the headers. Throws an Error that names the option of the model or the
/// module, with its format, that llama.cpp or GGUF lacks. Names, shapes and options:
/// src/models/*.cpp and llama-model.cpp of llama.cpp b11434.
GgufModel gguf_model(const Source& source, const Model& model, const GgufFormatOf& format_of);

/// The row of the checkpoint's matrix that is stored as row `row` of a tensor with `rows` rows.
int64_t stored_row(const GgufTensor& tensor, int64_t rows, int64_t row);

}  // namespace aqhost
