#include "calibrate/gram.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <vector>

#include "base/error.h"
#include "tensor/bfloat16_tile.h"
#include "tensor/vector_clones.h"

namespace aqhost {
namespace {

constexpr int64_t kTileSize = kTile * kTile;
constexpr int64_t kSlice = 4096;  // tokens that one task sums up
constexpr int64_t kTasks = 1024;  // tasks whose tiles are in memory at once, 16 kB each

/// A matrix [n, d] as the instruction needs it: panels of 64 columns, each with 64 pairs for every
/// two tokens. The last panel, and the last pair if n is odd, are filled with zeros.
class Panels {
 public:
  Panels(int64_t n, int64_t d)
      : pairs_((n + 1) / 2),
        count_((d + kTile - 1) / kTile),
        values_(at::empty({count_, pairs_, kTile}, at::kInt)) {}

  /// Fills the panels. row(token, buffer) returns the bfloat16 features of a token, which lie in
  /// `buffer` [d] or elsewhere.
  template <typename Row>
  void fill(int64_t n, int64_t d, const Row& row) {
    at::parallel_for(0, pairs_, 256, [&](int64_t begin, int64_t end) {
      std::vector<uint16_t> buffers[2];
      for (auto& buffer : buffers) buffer.resize(static_cast<std::size_t>(d));
      for (int64_t p = begin; p < end; p++) {
        const uint16_t* even = row(2 * p, buffers[0].data());
        const uint16_t* odd = 2 * p + 1 < n ? row(2 * p + 1, buffers[1].data()) : nullptr;
        for (int64_t c0 = 0; c0 < d; c0 += kTile)
          make_pairs(even + c0, odd == nullptr ? nullptr : odd + c0, std::min(kTile, d - c0),
                     data() + (c0 * pairs_ + p * kTile));
      }
    });
  }

  int64_t pairs() const { return pairs_; }
  int64_t count() const { return count_; }
  const uint32_t* panel(int64_t index) const { return data() + index * pairs_ * kTile; }

 private:
  uint32_t* data() const { return reinterpret_cast<uint32_t*>(values_.data_ptr<int32_t>()); }

  int64_t pairs_, count_;
  at::Tensor values_;
};

const uint16_t* const_bits_of(const at::Tensor& t) {
  return reinterpret_cast<const uint16_t*>(t.data_ptr<at::BFloat16>());
}

AQ_VECTOR_CLONES
void scale(const uint16_t* x, float factor, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; i++)
    to[i] = static_cast<uint16_t>(aq::to_bf16(aq::from_bf16(x[i]) * factor));
}

AQ_VECTOR_CLONES
void scale_difference(const uint16_t* a, const uint16_t* b, float factor, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; i++)
    to[i] =
        static_cast<uint16_t>(aq::to_bf16((aq::from_bf16(a[i]) - aq::from_bf16(b[i])) * factor));
}

/// The rows of x [n, d], each multiplied by its element of `factors` (undefined: 1).
Panels panels_of(const at::Tensor& x, const at::Tensor& factors) {
  const int64_t n = x.size(0), d = x.size(1);
  Panels panels(n, d);
  const uint16_t* bits = const_bits_of(x);
  const float* f = factors.defined() ? factors.data_ptr<float>() : nullptr;
  panels.fill(n, d, [=](int64_t t, uint16_t* buffer) -> const uint16_t* {
    if (f == nullptr) return bits + t * d;
    scale(bits + t * d, f[t], d, buffer);
    return buffer;
  });
  return panels;
}

/// The rows of `original` - x, each multiplied by its element of `factors` (undefined: 1).
Panels difference_panels(const at::Tensor& x, const at::Tensor& original,
                         const at::Tensor& factors) {
  const int64_t n = x.size(0), d = x.size(1);
  Panels panels(n, d);
  const uint16_t *after = const_bits_of(x), *before = const_bits_of(original);
  const float* f = factors.defined() ? factors.data_ptr<float>() : nullptr;
  panels.fill(n, d, [=](int64_t t, uint16_t* buffer) {
    scale_difference(before + t * d, after + t * d, f == nullptr ? 1 : f[t], d, buffer);
    return buffer;
  });
  return panels;
}

struct Tile {
  int64_t row, column;  // counted in tiles
};

/// sum += scale * the slices [slices, 64, 64] of a tile. If `mirrored`, a tile off the diagonal is
/// also added at its mirrored place.
void add_slices(at::Tensor& sum, const Tile& tile, const float* slices, int64_t count, float scale,
                bool mirrored) {
  float* out = sum.data_ptr<float>();
  const int64_t d = sum.size(0), r0 = tile.row * kTile, c0 = tile.column * kTile;
  for (int64_t r = r0; r < std::min(r0 + kTile, d); r++)
    for (int64_t c = c0; c < std::min(c0 + kTile, d); c++) {
      float value = 0;
      for (int64_t s = 0; s < count; s++)
        value += slices[s * kTileSize + (r - r0) * kTile + c - c0];
      out[r * d + c] += scale * value;
      if (mirrored && tile.row != tile.column) out[c * d + r] += scale * value;
    }
}

/// sum += scale * x^T y. If `mirrored`, only the upper triangle is computed and then mirrored. The
/// tokens are split into slices that are summed separately, so that all threads have work if d is
/// small. The number of slices does not depend on the number of threads.
void add_products(at::Tensor& sum, const Panels& x, const Panels& y, double scale, bool mirrored) {
  std::vector<Tile> tiles;
  for (int64_t r = 0; r < x.count(); r++)
    for (int64_t c = mirrored ? r : 0; c < y.count(); c++) tiles.push_back({r, c});
  const int64_t slices = std::clamp<int64_t>(2 * x.pairs() / kSlice, 1, kTasks);
  const int64_t step = (x.pairs() + slices - 1) / slices;
  const int64_t round = kTasks / slices;
  for (std::size_t begin = 0; begin < tiles.size(); begin += static_cast<std::size_t>(round)) {
    const Tile* batch = tiles.data() + begin;
    const int64_t count = std::min(round, static_cast<int64_t>(tiles.size() - begin));
    const at::Tensor partial = at::zeros({count, slices, kTileSize}, at::kFloat);
    auto* sums = partial.data_ptr<float>();
    at::parallel_for(0, count * slices, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        const Tile& tile = batch[i / slices];
        const int64_t from = std::min(i % slices * step, x.pairs());
        add_tile(sums + i * kTileSize, x.panel(tile.row) + from * kTile,
                 y.panel(tile.column) + from * kTile, std::min(step, x.pairs() - from));
      }
    });
    at::parallel_for(0, count, 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++)
        add_slices(sum, batch[i], sums + i * slices * kTileSize, slices, static_cast<float>(scale),
                   mirrored);
    });
  }
}

void check_operands(const at::Tensor& sum, const at::Tensor& x) {
  if (!has_bfloat16_products()) fail("this CPU has no AVX512-BF16");
  TORCH_INTERNAL_ASSERT(sum.is_contiguous() && sum.scalar_type() == at::kFloat &&
                        x.scalar_type() == at::kBFloat16 && x.size(1) == sum.size(0));
}

}  // namespace

void add_gram(at::Tensor& sum, const at::Tensor& x, const at::Tensor& weights) {
  check_operands(sum, x);
  const Panels panels =
      panels_of(x.contiguous(), weights.defined() ? weights.sqrt() : at::Tensor());
  add_products(sum, panels, panels, 1, true);
}

void add_shift_products(at::Tensor& sum, const at::Tensor& x, const at::Tensor& weights,
                        const at::Tensor& original, double scale) {
  check_operands(sum, x);
  const at::Tensor rows = x.contiguous();
  const Panels left = difference_panels(rows, original.contiguous(), weights);
  add_products(sum, left, panels_of(rows, {}), scale, false);
}

}  // namespace aqhost
