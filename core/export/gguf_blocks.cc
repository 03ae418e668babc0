#include "export/gguf_blocks.h"

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <span>

#include "base/error.h"

namespace aqhost {
namespace {

constexpr std::array kIq4NlValues{-127.0F, -104.0F, -83.0F, -65.0F, -49.0F, -35.0F, -22.0F, -10.0F,
                                  1.0F,    13.0F,   25.0F,  38.0F,  53.0F,  69.0F,  89.0F,  113.0F};

/// The factor c, a power of two, for which every value of `table` is c times that of `other`; 0 if
/// there is none.
float common_factor(std::span<const float> table, std::span<const float> other) {
  if (table.size() != other.size()) return 0;
  const float factor = table.back() / other.back();
  int exponent = 0;
  if (!(factor > 0) || std::frexp(factor, &exponent) != 0.5F) return 0;
  for (std::size_t i = 0; i < table.size(); i++)
    if (table[i] != factor * other[i]) return 0;
  return factor;
}

/// Whether the codes are E2M1 in its own order. -0 and +0 count as equal.
bool is_e2m1(const FormatDesc& desc) {
  static const std::vector<float> kValues = aq::float_values(aq::kE2M1, 4);
  return std::ranges::equal(desc.table(), kValues);
}

/// Whether blocks of `weights` weights, each with its scale, hold groups like those of the format.
bool holds_groups(const FormatDesc& desc, int64_t weights) {
  return desc.group_size <= 0 || desc.group_size % weights == 0;
}

std::optional<GgufType> integer_type(const FormatDesc& desc) {
  const int32_t bits = desc.element_bits;
  if (bits < 1 || desc.int_min != -(1 << (bits - 1)) || !aq::is_real_scale(desc.scale_kind))
    return {};
  if (bits == 4) return desc.zero_point() ? GgufType::kQ4_1 : GgufType::kQ4_0;
  if (bits == 5) return desc.zero_point() ? GgufType::kQ5_1 : GgufType::kQ5_0;
  if (bits == 8 && !desc.zero_point()) return GgufType::kQ8_0;
  return {};
}

/// The type that has the numbers of the format, whatever its groups are.
std::optional<GgufType> type_of_numbers(const FormatDesc& desc) {
  if (desc.element_kind == AQ_ELEM_INT)
    return desc.global_scale() || desc.two_level() ? std::nullopt : integer_type(desc);
  if (desc.element_kind != AQ_ELEM_TABLE || desc.element_bits != 4) return {};
  if (desc.global_scale())
    return is_e2m1(desc) && desc.scale_kind == AQ_SCALE_E4M3 ? std::optional(GgufType::kNvfp4)
                                                             : std::nullopt;
  if (is_e2m1(desc) && desc.scale_kind == AQ_SCALE_E8M0) return GgufType::kMxfp4;
  if (aq::is_real_scale(desc.scale_kind) && common_factor(desc.table(), kIq4NlValues) > 0)
    return GgufType::kIq4Nl;
  return {};
}

/// The formats with about so many bits that have a type for rows of `cols` weights.
std::string nearest_formats(int32_t bits, int64_t cols) {
  std::string text;
  if (cols % 256 == 0 && bits <= 3)
    text = bits <= 2 ? "q2_k (Q2_K), " : "q3_k (Q3_K), ";
  else if (cols % 256 == 0 && bits == 6)
    text = "q6_k (Q6_K) or ";
  if (bits <= 4) return text + "int4 (Q4_0, or Q4_1 with zero points) or mxfp4 (MXFP4)";
  return text +
         (bits == 5 ? "int5 (Q5_0, or Q5_1 with zero points)" : "int8 without zero points (Q8_0)");
}

/// The bytes of blocks, written one after another.
class BlockWriter {
 public:
  explicit BlockWriter(std::size_t bytes) { bytes_.reserve(bytes); }

  void put(uint32_t value, int width) {
    for (int i = 0; i < width; i++) bytes_.push_back(static_cast<std::byte>(value >> 8 * i));
  }
  void f16(float value) { put(aq::f16_bits(value), 2); }
  /// The low nibbles of codes: byte j has code j and code j + half.
  void nibbles(const uint8_t* codes, int half) {
    for (int j = 0; j < half; j++) put((codes[j] & 15U) | (codes[j + half] & 15U) << 4, 1);
  }
  void fifth_bits(const uint8_t* codes) {
    uint32_t bits = 0;
    for (int j = 0; j < 32; j++) bits |= (codes[j] >> 4 & 1U) << j;
    put(bits, 4);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// A float16 scale for a block. Takes note of a change.
float block_scale(float scale, GgufRounding& rounding) {
  if (!(std::fabs(scale) <= aq::kF16.max))
    fail("a scale is {}, and float16, which GGUF has for scales, ends at {}", scale, aq::kF16.max);
  const float half = aq::kF16.round(scale);
  rounding.scales++;
  if (half != scale) {
    rounding.rounded_scales++;
    rounding.worst_scale = std::max(rounding.worst_scale, std::fabs(double{half} / scale - 1));
  }
  return half;
}

/// The float16 value of code 0 of a block, when code `zero` stands for the weight 0. Takes note of
/// a change.
float block_minimum(float scale, float zero, GgufRounding& rounding) {
  const float exact = -scale * zero;
  if (!(std::fabs(exact) <= aq::kF16.max))
    fail("a minimum is {}, and float16, which GGUF has for minima, ends at {}", exact,
         aq::kF16.max);
  const float half = aq::kF16.round(exact);
  rounding.minima++;
  if (half != exact) {
    rounding.rounded_minima++;
    rounding.worst_minimum =
        std::max(rounding.worst_minimum, std::fabs((double{half} - exact) / scale));
  }
  return half;
}

/// The code of a scale of type E8M0.
uint32_t e8m0_code(float scale) {
  const int exponent = std::ilogb(scale);
  if (scale != std::ldexp(1.0F, exponent) || exponent < -127 || exponent > 127)
    fail("a scale is {}, expected a power of 2 from 2^-127 to 2^127", scale);
  return static_cast<uint32_t>(exponent + 127);
}

/// One block: its codes, and the parameters of its first group and of those after it.
struct Block {
  const uint8_t* codes;
  const float* params;
};

void put_block(GgufType type, const FormatDesc& desc, const Block& block, BlockWriter& out,
               GgufRounding& rounding) {
  const uint8_t* codes = block.codes;
  switch (type) {
    case GgufType::kQ4_0:
    case GgufType::kQ4_1:
    case GgufType::kQ5_0:
    case GgufType::kQ5_1: {
      const float scale = block_scale(block.params[0], rounding);
      out.f16(scale);
      if (desc.zero_point())
        out.f16(block_minimum(scale, block.params[1] - static_cast<float>(desc.int_min), rounding));
      if (desc.element_bits == 5) out.fifth_bits(codes);
      out.nibbles(codes, 16);
      return;
    }
    case GgufType::kQ8_0:
      out.f16(block_scale(block.params[0], rounding));
      for (int j = 0; j < 32; j++) out.put(codes[j] ^ 0x80U, 1);
      return;
    case GgufType::kIq4Nl:
      out.f16(block_scale(block.params[0] * common_factor(desc.table(), kIq4NlValues), rounding));
      out.nibbles(codes, 16);
      return;
    case GgufType::kMxfp4:
      out.put(e8m0_code(block.params[0]), 1);
      out.nibbles(codes, 16);
      return;
    case GgufType::kNvfp4:
      for (int g = 0; g < 4; g++) out.put(aq::e4m3_bits(block.params[g]), 1);
      for (int64_t g = 0; g < 4; g++) out.nibbles(codes + 16 * g, 8);
      return;
    default:
      fail("GGUF's type {} has no blocks that aqhost packs", info_of(type).name);
  }
}

}  // namespace

const GgufTypeInfo& info_of(GgufType type) {
  static const std::map<GgufType, GgufTypeInfo> kTypes{
      {GgufType::kF32, {"F32", 1, 4, 0}},
      {GgufType::kF16, {"F16", 1, 2, 1}},
      {GgufType::kQ4_0, {"Q4_0", 32, 18, 2}},
      {GgufType::kQ4_1, {"Q4_1", 32, 20, 3}},
      {GgufType::kQ5_0, {"Q5_0", 32, 22, 8}},
      {GgufType::kQ5_1, {"Q5_1", 32, 24, 9}},
      {GgufType::kQ8_0, {"Q8_0", 32, 34, 7}},
      {GgufType::kIq4Nl, {"IQ4_NL", 32, 18, 25}},
      {GgufType::kBF16, {"BF16", 1, 2, 32}},
      {GgufType::kMxfp4, {"MXFP4", 32, 17, 38}},
      {GgufType::kNvfp4, {"NVFP4", 64, 36, 39}},
      // those that plugins may have
      {GgufType{10}, {"Q2_K", 256, 84, 10}},
      {GgufType{11}, {"Q3_K", 256, 110, 12}},
      {GgufType{12}, {"Q4_K", 256, 144, 15}},
      {GgufType{13}, {"Q5_K", 256, 176, 17}},
      {GgufType{14}, {"Q6_K", 256, 210, 18}},
      {GgufType{16}, {"IQ2_XXS", 256, 66, 19}},
      {GgufType{17}, {"IQ2_XS", 256, 74, 20}},
      {GgufType{18}, {"IQ3_XXS", 256, 98, 23}},
      {GgufType{19}, {"IQ1_S", 256, 50, 24}},
      {GgufType{21}, {"IQ3_S", 256, 110, 26}},
      {GgufType{22}, {"IQ2_S", 256, 82, 28}},
      {GgufType{23}, {"IQ4_XS", 256, 136, 30}},
      {GgufType{29}, {"IQ1_M", 256, 56, 31}},
      {GgufType{34}, {"TQ1_0", 256, 54, 36}},
      {GgufType{35}, {"TQ2_0", 256, 66, 37}},
  };
  const auto found = kTypes.find(type);
  if (found == kTypes.end()) fail("ggml has no type {} of quantized weights", uint32_t(type));
  return found->second;
}

std::optional<GgufType> gguf_type(DType dtype) {
  if (dtype == DType::kF32) return GgufType::kF32;
  if (dtype == DType::kF16) return GgufType::kF16;
  return dtype == DType::kBF16 ? std::optional(GgufType::kBF16) : std::nullopt;
}

std::string gguf_label(const Format& format) {
  const FormatDesc& desc = format.desc();
  return fmt::format("{} g{}{}", format.id(), desc.group_size,
                     desc.zero_point() ? " with zero points" : "");
}

namespace {

/// The type of a format whose first packed tensor consists of blocks, which is checked.
GgufType type_of_plugin(const Format& format, int64_t cols) {
  const auto type = static_cast<GgufType>(*format.gguf_type());
  const GgufTypeInfo& info = info_of(type);
  const std::vector<TensorInfo> packed = format.packed(1, cols);
  if (packed[0].dtype != DType::kU8 ||
      packed[0].shape != std::vector<int64_t>{1, cols / info.weights * info.bytes})
    fail(
        "the plugin of {} says that it packs rows as blocks of {}, but its first packed tensor is "
        "another one",
        gguf_label(format), info.name);
  return type;
}

}  // namespace

GgufType gguf_type(const Format& format, int64_t cols) {
  if (format.gguf_type()) return type_of_plugin(format, cols);
  const FormatDesc& desc = format.desc();
  const std::optional<GgufType> type = type_of_numbers(desc);
  if (!type)
    fail("GGUF has no type for the numbers of {}; it has one for {}", gguf_label(format),
         nearest_formats(desc.element_bits, cols));
  const GgufTypeInfo& info = info_of(*type);
  if (*type != GgufType::kNvfp4 && !holds_groups(desc, info.weights))
    fail(
        "GGUF's {} has a scale for every {} weights, and {} has smaller groups, or groups that do "
        "not consist of whole blocks; group_size: 32 fits",
        info.name, info.weights, gguf_label(format));
  if (cols % info.weights != 0)
    fail(
        "GGUF's {} has blocks of {} weights, which do not divide the {} input features{}; skip the "
        "module, so that it stays dense",
        info.name, info.weights, cols,
        *type == GgufType::kNvfp4 && cols % 32 == 0 ? ", while the blocks of 32 of mxfp4 do" : "");
  return *type;
}

void GgufRounding::add(const GgufRounding& other) {
  scales += other.scales;
  rounded_scales += other.rounded_scales;
  minima += other.minima;
  rounded_minima += other.rounded_minima;
  worst_scale = std::max(worst_scale, other.worst_scale);
  worst_minimum = std::max(worst_minimum, other.worst_minimum);
}

std::vector<std::byte> pack_blocks(GgufType type, const Format& format,
                                   const QuantizedMatrix& matrix, GgufRounding& rounding) {
  if (format.gguf_type()) return std::move(format.pack(matrix).at(0).bytes);
  const FormatDesc& desc = format.desc();
  const GgufTypeInfo& info = info_of(type);
  const int64_t blocks = matrix.cols / info.weights, groups = desc.groups(matrix.cols);
  const int64_t width = desc.width(matrix.cols), n_params = desc.group_params;
  const auto* codes = reinterpret_cast<const uint8_t*>(matrix.codes.data());
  BlockWriter out(static_cast<std::size_t>(matrix.rows * blocks * info.bytes));
  for (int64_t r = 0; r < matrix.rows; r++)
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t group = r * groups + b * info.weights / width;
      put_block(type, desc,
                {codes + r * matrix.cols + b * info.weights,
                 matrix.group_params.data() + group * n_params},
                out, rounding);
    }
  return out.take();
}

float matrix_scale(const QuantizedMatrix& matrix) { return 1 / matrix.tensor_params.at(0); }

}  // namespace aqhost
