#include "checkpoint/fp8_blocks.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <array>

#include "base/error.h"
#include "base/field.h"

namespace aqhost {
namespace {

constexpr std::string_view kScale = "_scale_inv";
constexpr std::size_t kCodesAtOnce = std::size_t{1}
                                     << 18;  // bytes of codes, which fit a core's cache
constexpr int64_t kMaximumBlock = int64_t{1} << 20;

/// The values of the 256 codes of a type of 8 bits.
using Values = std::array<float, 256>;

const Values& e4m3_values() {
  static const Values kValues = [] {
    Values values{};
    for (std::size_t i = 0; i < values.size(); i++)
      values[i] = aq::from_e4m3(static_cast<uint8_t>(i));
    return values;
  }();
  return kValues;
}

/// Where a tensor and its scales lie. Rows, and rows of scales, are numbered across all experts.
struct Fp8Blocks {
  TensorInfo codes, scales;
  int64_t rows = 0, cols = 0;              // of a matrix
  int64_t block_rows = 0, block_cols = 0;  // of a block
  int64_t scale_rows = 0, scale_cols = 0;  // of the scales of a matrix

  int64_t scale_row(int64_t row) const { return row / rows * scale_rows + row % rows / block_rows; }

  /// The rows `first` to `last` of the scales.
  std::vector<float> read_scales(const Source& stored, int64_t first, int64_t last) const {
    std::vector<float> values(static_cast<std::size_t>((last - first + 1) * scale_cols));
    if (scales.dtype != DType::kF8E8M0) {
      stored.read_f32(scales.name, first * scale_cols, values);
      return values;
    }
    std::vector<std::byte> bytes(values.size());
    stored.read_bytes(scales.name, first * scale_cols, bytes);
    std::transform(bytes.begin(), bytes.end(), values.begin(),
                   [](std::byte b) { return aq::from_e8m0(std::to_integer<uint8_t>(b)); });
    return values;
  }

  void decode(const Source& stored, int64_t begin, std::span<float> out) const {
    if (out.empty()) return;
    const auto end = begin + static_cast<int64_t>(out.size());
    const int64_t first = scale_row(begin / cols);
    const std::vector<float> scale = read_scales(stored, first, scale_row((end - 1) / cols));
    const Values& values = e4m3_values();
    std::vector<std::byte> part(std::min(kCodesAtOnce, out.size()));
    for (std::size_t done = 0; done < out.size(); done += part.size()) {
      part.resize(std::min(part.size(), out.size() - done));
      int64_t at = begin + static_cast<int64_t>(done);
      stored.read_bytes(codes.name, at, part);
      float* to = out.data() + done;
      for (std::size_t i = 0; i < part.size();) {  // the elements of one row and one block
        const int64_t row = at / cols, col = at % cols, block = col / block_cols;
        const int64_t rest = std::min(cols, (block + 1) * block_cols) - col;
        const std::size_t n = std::min(static_cast<std::size_t>(rest), part.size() - i);
        const float s =
            scale[static_cast<std::size_t>((scale_row(row) - first) * scale_cols + block)];
        for (std::size_t j = i; j < i + n; j++)
          to[j] = values[std::to_integer<std::size_t>(part[j])] * s;
        i += n;
        at += static_cast<int64_t>(n);
      }
    }
  }
};

int64_t blocks_in(int64_t size, int64_t block) { return (size - 1) / block + 1; }

/// The block size that config.json gives. Throws an Error that names the field of a setting that
/// is not supported.
std::pair<int64_t, int64_t> block_size(const Source& stored) {
  const Field quantization(stored.config().at("quantization_config"),
                           stored.directory() + "/config.json", "quantization_config");
  // scales of activations that are stored would be tensors that are not known here
  if (const Field scheme = quantization["activation_scheme"];
      scheme.text_or("dynamic") != "dynamic")
    scheme.unsupported();
  const Field size = quantization["weight_block_size"];
  if (!size.json().is_array() || size.json().size() != 2)
    size.mismatch(
        "two integers, the rows and columns of a block; FP8 weights without blocks are "
        "read only from compressed-tensors");
  return {size.items()[0].integer(1, kMaximumBlock), size.items()[1].integer(1, kMaximumBlock)};
}

/// Throws an Error if the tensor cannot be one in FP8 blocks, or if its scales are missing or
/// wrong.
Fp8Blocks find_blocks(const Source& stored, const TensorInfo& codes,
                      std::pair<int64_t, int64_t> block) {
  const std::string where = fmt::format("{}: tensor {}", stored.file_of(codes.name), codes.name);
  const std::vector<int64_t>& shape = codes.shape;
  if (shape.size() < 2 || shape.size() > 3 || codes.numel() == 0)
    fail("{} is F8_E4M3 [{}], expected [rows, columns] or [experts, rows, columns]", where,
         fmt::join(shape, ", "));
  Fp8Blocks blocks{codes, {}, shape[shape.size() - 2], shape.back(), block.first, block.second};
  blocks.scale_rows = blocks_in(blocks.rows, block.first);
  blocks.scale_cols = blocks_in(blocks.cols, block.second);
  const std::string name = codes.name + std::string(kScale);
  const TensorInfo* scales = stored.find(name);
  if (scales == nullptr) fail("{} is F8_E4M3, but its scales, {}, are missing", where, name);
  std::vector<int64_t> expected = shape;
  expected[shape.size() - 2] = blocks.scale_rows;
  expected.back() = blocks.scale_cols;
  const DType type = scales->dtype;
  if (scales->shape != expected ||
      (type != DType::kF32 && type != DType::kBF16 && type != DType::kF8E8M0))
    fail(
        "{}: tensor {} is {} [{}], expected F32, BF16 or F8_E8M0 [{}]: a scale for each block of "
        "{} x {} of {}, which is [{}]",
        stored.file_of(name), name, dtype_name(type), fmt::join(scales->shape, ", "),
        fmt::join(expected, ", "), block.first, block.second, codes.name, fmt::join(shape, ", "));
  blocks.scales = *scales;
  return blocks;
}

}  // namespace

std::vector<EncodedTensor> find_fp8_blocks(const Source& stored) {
  const auto block = block_size(stored);
  std::vector<EncodedTensor> encoded;
  for (const TensorInfo& info : stored.tensors()) {
    if (info.name.ends_with(kScale)) {
      const std::string codes = info.name.substr(0, info.name.size() - kScale.size());
      const TensorInfo* found = stored.find(codes);
      if (found == nullptr || found->dtype != DType::kF8E4M3)
        fail("{}: tensor {} has the scales of {}, which {}", stored.file_of(info.name), info.name,
             codes,
             found == nullptr ? "is missing"
                              : fmt::format("is {}, expected F8_E4M3", dtype_name(found->dtype)));
    }
    if (info.dtype != DType::kF8E4M3) continue;
    const Fp8Blocks blocks = find_blocks(stored, info, block);
    encoded.push_back({{info.name, DType::kBF16, info.shape},
                       {info.name, blocks.scales.name},
                       [blocks](const Source& source, int64_t begin, std::span<float> out) {
                         blocks.decode(source, begin, out);
                       }});
  }
  return encoded;
}

}  // namespace aqhost
