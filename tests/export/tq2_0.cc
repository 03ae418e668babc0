// tq2_0: -1, 0 and 1 in the blocks of ggml's TQ2_0, as a plugin of a third party may bring them: a
// block of 256 weights is 64 bytes and a float16 scale. The option `claim` makes it name another
// type.

#include <aq/sdk/format.hpp>

namespace {

constexpr int64_t kBlock = 66;

/// Calls body(weight, byte, shift) for the codes of a block.
template <typename Body>
void each_code(Body body) {
  for (int i = 0; i < 256; i++) body(i, i / 128 * 32 + i % 32, i % 128 / 32 * 2);
}

aq::PackedTensor blocks() {
  return {"weight_blocks",
          [](const aq::MatrixShape& m) {
            return aq::TensorLayout{"U8", {m.rows, m.cols / 256 * kBlock}};
          },
          [](const aq::PackSource& from, void* to) {
            auto* bytes = static_cast<uint8_t*>(to);
            for (int64_t b = 0; b < from.rows * from.cols / 256; b++, bytes += kBlock) {
              std::fill_n(bytes, kBlock, uint8_t{0});
              each_code([&](int i, int byte, int shift) {
                bytes[byte] |= static_cast<uint8_t>(from.codes[b * 256 + i] << shift);
              });
              aq::detail::write_scale(AQ_SCALE_F16, from.params[b], bytes + 64, 0);
            }
          },
          [](const void*, const aq::UnpackTarget&) { throw aq::Error("it is only written"); }};
}

struct Tq2 {
  static constexpr aq::Descriptor kDescriptor{"tq2_0", "TQ2_0", "1.0.0", "AlphaQuant",
                                              "-1, 0 and 1 in blocks of 256"};

  static aq::FormatSpec create(aq::Options& options) {
    const std::string claim = options.choice("claim", "TQ2_0", {"TQ2_0", "Q4_K", "none of ggml's"});
    aq::FormatSpec spec;
    spec.integers = {-1, 1};
    spec.scale.kind = AQ_SCALE_F16;
    spec.group_size = options.group_size(256, {256});
    spec.packed = {blocks()};
    spec.config = {{"format", "tq2_0"}, {"quant_method", "test"}};
    spec.gguf_type = claim == "TQ2_0" ? 35 : claim == "Q4_K" ? 12 : 99;
    return spec;
  }
};

}  // namespace

AQ_EXPORT_QUANTIZER(Tq2);
