#include "export/gguf.h"

#include <algorithm>
#include <cctype>
#include <string_view>

#include "export/compressed_tensors.h"
#include "export/gguf_blocks.h"

namespace aqhost {
namespace {

class Gguf : public Container {
 public:
  std::string name() const override { return "gguf"; }

  const Container& of_checkpoint() const override { return compressed_tensors(); }

  std::string why_no_activations() const override {
    return "a GGUF file does not say how inputs are rounded (llama.cpp rounds them to 8 bits in "
           "its "
           "own way); use aq: bf16 or --export compressed-tensors";
  }

  /// Scales in float16 go into blocks as they are.
  Json options_for(const Format& format) const override {
    const int32_t kind = format.desc().scale_kind;
    const bool real = kind == AQ_SCALE_BF16 || kind == AQ_SCALE_F32;
    return real ? Json{{"scale_dtype", "float16"}} : Json::object();
  }

  std::string format_name(const Format& format) const override {
    return info_of(gguf_type(format, 0)).name;
  }

  std::vector<TensorInfo> tensors_of(const StoredModule& module) const override {
    const GgufType type = gguf_type(*module.format, module.cols);
    const GgufTypeInfo& info = info_of(type);
    std::vector<TensorInfo> tensors{
        {"weight", DType::kU8, {module.rows, module.cols / info.weights * info.bytes}}};
    if (has_matrix_scale(type)) tensors.push_back({"scale", DType::kF32, {1}});
    return tensors;
  }

  std::vector<PackedTensor> pack(const StoredModule& module, const QuantizedMatrix& matrix,
                                 float /*input_global*/) const override {
    const GgufType type = gguf_type(*module.format, module.cols);
    std::vector<TensorInfo> infos = tensors_of(module);
    GgufRounding rounding;
    std::vector<PackedTensor> tensors;
    tensors.push_back({infos[0], pack_blocks(type, *module.format, matrix, rounding)});
    if (!has_matrix_scale(type)) return tensors;
    const float scale = matrix_scale(matrix);
    const auto bytes = std::as_bytes(std::span(&scale, 1));
    tensors.push_back({infos[1], {bytes.begin(), bytes.end()}});
    return tensors;
  }
};

/// Whether `text` is `pattern`, in which # stands for a digit.
bool matches(std::string_view text, std::string_view pattern) {
  return std::ranges::equal(text, pattern, [](char c, char p) {
    return p == '#' ? std::isdigit(static_cast<unsigned char>(c)) != 0 : c == p;
  });
}

}  // namespace

bool is_gguf_file(const std::string& name) {
  return name == kGgufFile || matches(name, "model-#####-of-#####.gguf");
}

const Container& gguf() {
  static const Gguf kContainer;
  return kContainer;
}

}  // namespace aqhost
