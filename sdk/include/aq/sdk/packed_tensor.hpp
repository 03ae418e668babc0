// aq/sdk/packed_tensor.hpp - the tensors in which a format stores a matrix: their types and shapes,
// and how they are written and read.
#pragma once

#include <aq/sdk/numeric.hpp>
#include <aq/sdk/pack.hpp>
#include <aq/sdk/plugin.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace aq {

/// The size of a matrix of weights, and the description of its format.
struct MatrixShape {
  const aq_format_desc& desc;
  int64_t rows, cols;

  int64_t codes_per_row() const { return cols / desc.vector_dim; }
  int64_t groups_per_row() const {
    return desc.group_size <= 0 ? 1 : (cols + desc.group_size - 1) / desc.group_size;
  }
  /// The number of different scales: one if the whole matrix is a group, otherwise one for each
  /// row and group.
  int64_t scales() const { return desc.group_size == 0 ? 1 : rows * groups_per_row(); }
};

/// A quantized matrix in memory; see aq_pack_args. Nothing is owned.
template <typename Code, typename Param>
struct MatrixView : MatrixShape {
  Code* codes;           // [rows, codes_per_row()]; above 8 bits, each code has two bytes
  Param* params;         // [rows, groups_per_row(), desc.group_params]
  Param* tensor_params;  // [desc.tensor_params]; nullptr if there are none
};
using PackSource = MatrixView<const uint8_t, const float>;
using UnpackTarget = MatrixView<uint8_t, float>;

/// The type of a tensor, as safetensors spells it ("I32"), and its shape.
struct TensorLayout {
  const char* type;
  std::vector<int64_t> shape;
};

/// One of the tensors in which a matrix is stored. `suffix` is a string literal: the tensor of
/// module M is named "M.suffix". pack() writes the whole tensor; unpack() fills the part of the
/// matrix that the tensor holds. The functions below make the usual ones; a format can also give
/// functions of its own.
struct PackedTensor {
  const char* suffix;
  std::function<TensorLayout(const MatrixShape&)> layout;
  std::function<void(const PackSource& from, void* to)> pack;
  std::function<void(const void* from, const UnpackTarget& to)> unpack;
};

namespace detail {

/// The element type for a type of safetensors. DLPack 0.6 has no floats of 8 bits: they are u8.
inline DLDataType element_type(std::string_view name) {
  static constexpr std::pair<std::string_view, DLDataType> kTypes[]{
      {"I8", {kDLInt, 8, 1}},       {"I16", {kDLInt, 16, 1}},     {"I32", {kDLInt, 32, 1}},
      {"I64", {kDLInt, 64, 1}},     {"U8", {kDLUInt, 8, 1}},      {"F16", {kDLFloat, 16, 1}},
      {"BF16", {kDLBfloat, 16, 1}}, {"F32", {kDLFloat, 32, 1}},   {"F64", {kDLFloat, 64, 1}},
      {"U16", {kDLUInt, 16, 1}},    {"F8_E4M3", {kDLUInt, 8, 1}}, {"F8_E5M2", {kDLUInt, 8, 1}},
      {"F8_E8M0", {kDLUInt, 8, 1}}};
  for (const auto& [known, type] : kTypes)
    if (known == name) return type;
  throw Error("the SDK does not know the type " + std::string(name) + " of a packed tensor",
              AQ_INTERNAL);
}

template <typename Word>
PackedTensor bit_stream(const char* suffix, const char* type) {
  const auto words = [](const MatrixShape& m) {
    if (m.desc.element_bits > 8)
      throw Error("codes of more than 8 bits need functions of their own to be packed",
                  AQ_INTERNAL);
    return packed_words(m.codes_per_row(), m.desc.element_bits, 8 * sizeof(Word));
  };
  return {suffix,
          [=](const MatrixShape& m) {
            return TensorLayout{type, {m.rows, words(m)}};
          },
          [=](const PackSource& from, void* to) {
            const int64_t n = from.codes_per_row(), width = words(from);
            for (int64_t r = 0; r < from.rows; r++)
              pack_words(from.codes + r * n, n, 1, from.desc.element_bits,
                         static_cast<Word*>(to) + r * width, 1);
          },
          [=](const void* from, const UnpackTarget& to) {
            const int64_t n = to.codes_per_row(), width = words(to);
            for (int64_t r = 0; r < to.rows; r++)
              unpack_words(static_cast<const Word*>(from) + r * width, 1, to.desc.element_bits,
                           to.codes + r * n, n, 1);
          }};
}

inline const char* scale_type(int32_t scale_kind) {
  switch (scale_kind) {
    case AQ_SCALE_E8M0:
      return "U8";
    case AQ_SCALE_E4M3:
      return "F8_E4M3";
    case AQ_SCALE_BF16:
      return "BF16";
    case AQ_SCALE_F16:
      return "F16";
    default:
      return "F32";
  }
}

inline void write_scale(int32_t scale_kind, float scale, void* to, int64_t i) {
  switch (scale_kind) {
    case AQ_SCALE_E8M0:
      static_cast<uint8_t*>(to)[i] = static_cast<uint8_t>(std::ilogb(scale) + 127);
      break;
    case AQ_SCALE_E4M3:
      static_cast<uint8_t*>(to)[i] = e4m3_bits(scale);
      break;
    case AQ_SCALE_BF16:
      static_cast<uint16_t*>(to)[i] = bf16_bits(scale);
      break;
    case AQ_SCALE_F16:
      static_cast<uint16_t*>(to)[i] = f16_bits(scale);
      break;
    default:
      static_cast<float*>(to)[i] = scale;
  }
}

inline float read_scale(int32_t scale_kind, const void* from, int64_t i) {
  switch (scale_kind) {
    case AQ_SCALE_E8M0:
      return from_e8m0(static_cast<const uint8_t*>(from)[i]);
    case AQ_SCALE_E4M3:
      return from_e4m3(static_cast<const uint8_t*>(from)[i]);
    case AQ_SCALE_BF16:
      return from_bf16(static_cast<const uint16_t*>(from)[i]);
    case AQ_SCALE_F16:
      return from_f16(static_cast<const uint16_t*>(from)[i]);
    default:
      return static_cast<const float*>(from)[i];
  }
}

}  // namespace detail

/// Codes of up to 8 bits; each row is a little-endian bit stream (see pack.hpp). If `type` is
/// "I32", rows consist of words of 32 bits, otherwise of bytes.
inline PackedTensor packed_codes(const char* suffix, const char* type) {
  return std::string_view(type) == "I32" ? detail::bit_stream<uint32_t>(suffix, type)
                                         : detail::bit_stream<uint8_t>(suffix, type);
}

/// How a format stores a row of n codes of up to 8 bits in bytes of its own layout.
struct RowPacking {
  int64_t (*bytes)(int64_t n);  // the number of bytes
  void (*pack)(const uint8_t* codes, int64_t n, uint8_t* bytes);
  void (*unpack)(const uint8_t* bytes, int64_t n, uint8_t* codes);
};

/// Codes that are packed row by row with functions of the format. `type` has one byte: "U8", "I8".
inline PackedTensor packed_rows(const char* suffix, const char* type, const RowPacking& row) {
  return {suffix,
          [=](const MatrixShape& m) {
            return TensorLayout{type, {m.rows, row.bytes(m.codes_per_row())}};
          },
          [=](const PackSource& from, void* to) {
            const int64_t n = from.codes_per_row(), width = row.bytes(n);
            for (int64_t r = 0; r < from.rows; r++)
              row.pack(from.codes + r * n, n, static_cast<uint8_t*>(to) + r * width);
          },
          [=](const void* from, const UnpackTarget& to) {
            const int64_t n = to.codes_per_row(), width = row.bytes(n);
            for (int64_t r = 0; r < to.rows; r++)
              row.unpack(static_cast<const uint8_t*>(from) + r * width, n, to.codes + r * n);
          }};
}

/// The scales, as [rows, groups] or, if the whole matrix is one group, as [1]. Their type is the
/// format's kind of scale; E8M0 is stored as U8, the exponent + 127.
inline PackedTensor packed_scales(const char* suffix = "weight_scale") {
  return {suffix,
          [](const MatrixShape& m) {
            const char* type = detail::scale_type(m.desc.scale_kind);
            if (m.desc.group_size == 0) return TensorLayout{type, {1}};
            return TensorLayout{type, {m.rows, m.groups_per_row()}};
          },
          [](const PackSource& from, void* to) {
            for (int64_t i = 0; i < from.scales(); i++)
              detail::write_scale(from.desc.scale_kind, from.params[i * from.desc.group_params], to,
                                  i);
          },
          [](const void* from, const UnpackTarget& to) {
            for (int64_t i = 0; i < to.rows * to.groups_per_row(); i++)
              to.params[i * to.desc.group_params] =
                  detail::read_scale(to.desc.scale_kind, from, to.scales() == 1 ? 0 : i);
          }};
}

/// The parameters of the matrix, such as its global scale or a codebook, as F32 of this shape.
inline PackedTensor packed_tensor_params(const char* suffix, std::vector<int64_t> shape) {
  return {suffix,
          [=](const MatrixShape&) {
            return TensorLayout{"F32", shape};
          },
          [](const PackSource& from, void* to) {
            std::memcpy(to, from.tensor_params, from.desc.tensor_params * sizeof(float));
          },
          [](const void* from, const UnpackTarget& to) {
            std::memcpy(to.tensor_params, from, to.desc.tensor_params * sizeof(float));
          }};
}

/// "weight_shape": the numbers of rows and columns, as I64 [2]. Readers need it if they cannot tell
/// the number of columns from the other tensors.
inline PackedTensor packed_shape() {
  return {"weight_shape",
          [](const MatrixShape&) {
            return TensorLayout{"I64", {2}};
          },
          [](const PackSource& from, void* to) {
            const int64_t shape[2] = {from.rows, from.cols};
            std::memcpy(to, shape, sizeof shape);
          },
          [](const void*, const UnpackTarget&) {}};
}

}  // namespace aq
