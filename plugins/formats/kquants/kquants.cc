// q2_k to q6_k: the K-quants of llama.cpp (Q2_K to Q6_K of ggml), integers with two-level scales.
// AQ_BITS is the width as text, such as "4". Each module is stored in these tensors:
//   weight_blocks  u8 [rows, cols / 256 * bytes of a block]  see blocks.h
//   weight_shape   i64 [2]
// No engine loads these checkpoints; llama.cpp loads the GGUF files that are made of them.

#include <aq/sdk/format.hpp>

#include "blocks.h"

namespace {

constexpr int kBits = AQ_BITS[0] - '0';

/// What the widths differ in.
struct Kind {
  uint32_t gguf_type;  // in ggml.h
  int32_t group;
  aq::IntRange codes, k;
  int32_t most_m;
  const char* fits;  // what has blocks of 32, and enough bits
};
constexpr Kind kind() {
  switch (kBits) {
    case 2:
      return {10, 16, {0, 3}, {1, 15}, 15, "int4 (Q4_0)"};
    case 3:
      return {11, 16, {-4, 3}, {-32, 31}, 0, "int4 (Q4_0)"};
    case 4:
      return {12, 32, {0, 15}, {1, 63}, 63, "int4 (Q4_0)"};
    case 5:
      return {13, 32, {0, 31}, {1, 63}, 63, "int5 (Q5_0)"};
    default:
      return {14, 16, {-32, 31}, {-128, 127}, 0, "int8 (Q8_0)"};
  }
}

/// The parameters of group g of a row.
template <typename Param>
Param* params_of(const aq::MatrixShape& m, Param* params, int64_t row, int64_t g) {
  return params + (row * m.groups_per_row() + g) * m.desc.group_params;
}

/// Calls body(row, first column, bytes of the block there).
template <typename Byte, typename Body>
void each_block(const aq::MatrixShape& m, Byte* bytes, Body body) {
  for (int64_t row = 0; row < m.rows; row++)
    for (int64_t c = 0; c < m.cols; c += kquants::kWeights, bytes += kquants::block_bytes(kBits))
      body(row, c, bytes);
}

aq::PackedTensor packed_blocks() {
  return {
      "weight_blocks",
      [](const aq::MatrixShape& m) {
        if (m.cols % kquants::kWeights != 0)
          throw aq::Error("blocks of 256 weights do not divide a row of " + std::to_string(m.cols) +
                              "; " + kind().fits + " in groups of 32 fits, or skip the module",
                          AQ_UNSUPPORTED);
        const int64_t bytes = m.cols / kquants::kWeights * kquants::block_bytes(kBits);
        return aq::TensorLayout{"U8", {m.rows, bytes}};
      },
      [](const aq::PackSource& from, void* to) {
        const aq::TwoLevelFit lattice(from.desc);
        each_block(from, static_cast<uint8_t*>(to), [&](int64_t row, int64_t c, uint8_t* at) {
          kquants::Block block;
          std::copy_n(from.codes + row * from.cols + c, kquants::kWeights, block.codes.begin());
          for (int g = 0; g < kquants::kWeights / kind().group; g++) {
            const float* p = params_of(from, from.params, row, c / kind().group + g);
            block.k[static_cast<std::size_t>(g)] = lattice.k_of({p[0], p[1], p[2], p[3]});
            block.m[static_cast<std::size_t>(g)] = lattice.m_of({p[0], p[1], p[2], p[3]});
            block.d = p[2];
            block.dmin = p[3];
          }
          std::fill_n(at, kquants::block_bytes(kBits), uint8_t{0});
          kquants::put_block(kBits, block, at);
        });
      },
      [](const void* from, const aq::UnpackTarget& to) {
        each_block(
            to, static_cast<const uint8_t*>(from), [&](int64_t row, int64_t c, const uint8_t* at) {
              const kquants::Block block = kquants::take_block(kBits, at);
              std::copy(block.codes.begin(), block.codes.end(), to.codes + row * to.cols + c);
              for (int g = 0; g < kquants::kWeights / kind().group; g++) {
                float* p = params_of(to, to.params, row, c / kind().group + g);
                p[0] = static_cast<float>(block.k[static_cast<std::size_t>(g)]) * block.d;
                p[1] = static_cast<float>(block.m[static_cast<std::size_t>(g)]) * block.dmin;
                p[2] = block.d;
                p[3] = block.dmin;
              }
            });
      }};
}

struct KQuant {
  static constexpr aq::Descriptor kDescriptor{
      "q" AQ_BITS "_k", "Q" AQ_BITS "_K", "1.0.0", "AlphaQuant",
      AQ_BITS "-bit integers with two-level scales, for GGUF files (llama.cpp)"};

  static aq::FormatSpec create(aq::Options& options) {
    constexpr Kind kKind = kind();
    constexpr bool kSymmetric = kKind.most_m == 0;
    if (options.flag("symmetric", kSymmetric) != kSymmetric)  // as the config below has it
      throw aq::Error(kSymmetric ? "the option symmetric is false, and this format has no minima"
                                 : "the option symmetric is true, and this format has minima");
    aq::FormatSpec spec;
    spec.integers = kKind.codes;
    spec.scale.kind = AQ_SCALE_F16;
    spec.two_level = {kquants::kWeights, kKind.k, kKind.most_m};
    for (int i = 0; i <= 12; i++) spec.search.push_back(1.1f - static_cast<float>(i) * 0.05f);
    spec.group_size = options.group_size(kKind.group, {kKind.group});
    spec.packed = {packed_blocks(), aq::packed_shape()};
    spec.config = {{"format", "q" AQ_BITS "_k"}, {"quant_method", "alphaquant"}};
    spec.dynamic = options.dynamic();
    spec.gguf_type = kKind.gguf_type;
    return spec;
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(KQuant);
