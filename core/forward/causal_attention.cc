#include "forward/causal_attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <cstring>
#include <limits>
#include <numbers>
#include <vector>

#include "tensor/bfloat16_tile.h"
#include "tensor/power_of_two.h"

#define AQ_AVX512 __attribute__((target("avx512f,avx512bw")))

namespace aqhost {
namespace {

/// One head in one sequence.
struct Head {
  const uint16_t *q, *k, *v;  // [tokens, size] bfloat16
  uint16_t* context;          // [tokens, size] bfloat16
  int64_t tokens, size, window;
  int64_t q_stride, k_stride;  // between tokens: of q and context; of k and v
  float factor;                // of the scores, for exponents of 2
};

/// The memory that one thread works in.
struct Scratch {
  std::vector<uint32_t> keys;    // [tiles, size / 2, 64], pairs of features
  std::vector<uint32_t> values;  // [panels of 64 features, tokens / 2, 64], pairs of tokens
  std::vector<uint32_t> query;   // [size / 2, 64]
  std::vector<float> scores;     // [tokens, 64 queries]
  std::vector<uint32_t> shares;  // [tokens / 2, 64 queries]: e^score, pairs of tokens
};

int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

/// Packs 64 tokens of q or k, from `begin` on, as columns of pairs of features, with zeros after
/// the last token.
void pack_tokens(const uint16_t* x, int64_t stride, int64_t begin, const Head& head, uint32_t* to) {
  const int64_t width = std::min(kTile, head.tokens - begin);
  for (int64_t p = 0; p < head.size / 2; p++, to += kTile) {
    for (int64_t c = 0; c < width; c++)
      std::memcpy(to + c, x + (begin + c) * stride + 2 * p, sizeof *to);
    std::fill(to + width, to + kTile, 0);
  }
}

/// Packs all values as rows of pairs of tokens, with zeros after the last token and the last
/// feature.
void pack_values(const Head& head, std::vector<uint32_t>& to) {
  const int64_t pairs = tiles_of(head.tokens) * kTile / 2, used = (head.tokens + 1) / 2;
  to.resize(static_cast<std::size_t>(tiles_of(head.size) * pairs * kTile));
  for (int64_t c0 = 0; c0 < head.size; c0 += kTile) {
    uint32_t* panel = to.data() + c0 * pairs;
    for (int64_t p = 0; p < used; p++) {
      const uint16_t* even = head.v + 2 * p * head.k_stride + c0;
      make_pairs(even, 2 * p + 1 < head.tokens ? even + head.k_stride : nullptr,
                 std::min(kTile, head.size - c0), panel + p * kTile);
    }
    std::fill(panel + used * kTile, panel + pairs * kTile, 0);
  }
}

/// Masks the keys that the queries of the tile do not see. A key is seen by its own token and the
/// tokens after it; if `window` is not 0, by `window` tokens in total.
void mask(float* tile, int64_t first_key, int64_t first_query, int64_t window) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const auto in_tile = [](int64_t query) { return std::clamp<int64_t>(query, 0, kTile); };
  for (int64_t k = 0; k < kTile; k++, tile += kTile) {
    const int64_t own = first_key + k - first_query;
    std::fill(tile, tile + in_tile(own), kNone);
    if (window > 0) std::fill(tile + in_tile(own + window), tile + kTile, kNone);
  }
}

/// shares = 2^(factor (score - the query's maximum)), and their sums [64]. `scores` is [tokens,
/// 64].
AQ_AVX512 void exponentiate(const float* scores, int64_t tokens, float factor, uint32_t* shares,
                            float* sums) {
  float maximum[kTile];
  std::copy_n(scores, kTile, maximum);
  for (int64_t t = 1; t < tokens; t++)
    for (int64_t c = 0; c < kTile; c++) maximum[c] = std::max(maximum[c], scores[t * kTile + c]);
  std::fill_n(sums, kTile, 0.0F);
  for (int64_t t = 0; t < tokens; t += 2, shares += kTile)
    for (int64_t c = 0; c < kTile; c++) {
      const float a = power_of_two<4>((scores[t * kTile + c] - maximum[c]) * factor);
      const float b = power_of_two<4>((scores[(t + 1) * kTile + c] - maximum[c]) * factor);
      sums[c] += a + b;
      shares[c] = aq::to_bf16(a) | aq::to_bf16(b) << 16;
    }
}

void attend(const Head& head, Scratch& s) {
  const int64_t tiles = tiles_of(head.tokens), packed = head.size / 2 * kTile;
  s.keys.resize(static_cast<std::size_t>(tiles * packed));
  s.query.resize(static_cast<std::size_t>(packed));
  s.scores.resize(static_cast<std::size_t>(tiles * kTile * kTile));
  s.shares.resize(s.scores.size() / 2);
  for (int64_t t = 0; t < tiles; t++)
    pack_tokens(head.k, head.k_stride, t * kTile, head, s.keys.data() + t * packed);
  pack_values(head, s.values);
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t begin = i * kTile;
    const int64_t first =
        head.window > 0 ? std::max<int64_t>(0, begin - head.window + 1) / kTile : 0;
    pack_tokens(head.q, head.q_stride, begin, head, s.query.data());
    std::fill_n(s.scores.data(), (i + 1 - first) * kTile * kTile, 0.0F);
    for (int64_t t = first; t <= i; t++) {
      float* tile = s.scores.data() + (t - first) * kTile * kTile;
      add_tile(tile, s.keys.data() + t * packed, s.query.data(), head.size / 2);
      if (t == i || head.window > 0) mask(tile, t * kTile, begin, head.window);
    }
    float sums[kTile];
    const int64_t seen = (i + 1 - first) * kTile;
    exponentiate(s.scores.data(), seen, head.factor, s.shares.data(), sums);
    for (int64_t c0 = 0; c0 < head.size; c0 += kTile) {
      float context[kTile * kTile] = {};
      const int64_t width = std::min(kTile, head.size - c0);
      const uint32_t* values = s.values.data() + (c0 * tiles + first * kTile) / 2 * kTile;
      add_tile(context, s.shares.data(), values, seen / 2, width);
      for (int64_t r = 0; r < std::min(kTile, head.tokens - begin); r++)
        for (int64_t c = 0; c < width; c++)
          head.context[(begin + r) * head.q_stride + c0 + c] =
              static_cast<uint16_t>(aq::to_bf16(context[r * kTile + c] / sums[r]));
    }
  }
}

uint16_t* bits_of(const at::Tensor& t) {
  return reinterpret_cast<uint16_t*>(t.data_ptr<at::BFloat16>());
}

}  // namespace

bool has_causal_attention(const at::Tensor& q) {
  return q.is_cpu() && q.scalar_type() == at::kBFloat16 && q.size(3) % 2 == 0 &&
         !q.requires_grad() && has_bfloat16_products();
}

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double scale, int64_t window) {
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), size = q.size(3);
  const int64_t kv_heads = k.size(2), shared = heads / kv_heads;
  at::Tensor context = at::empty({batch, tokens, heads * size}, q.options());
  const uint16_t *queries = bits_of(q), *keys = bits_of(k), *values = bits_of(v);
  uint16_t* contexts = bits_of(context);
  at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i / heads * tokens, h = i % heads;
      const int64_t query = (first * heads + h) * size,
                    key = (first * kv_heads + h / shared) * size;
      attend({queries + query, keys + key, values + key, contexts + query, tokens, size, window,
              heads * size, kv_heads * size, static_cast<float>(scale * std::numbers::log2e)},
             scratch);
    }
  });
  return context;
}

}  // namespace aqhost
