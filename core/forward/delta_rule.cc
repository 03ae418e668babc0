#include "forward/delta_rule.h"

#include <limits>

namespace aqhost {
namespace {

constexpr int64_t kChunk = 64;

/// [batch, tokens, heads, ...] as [batch, heads, chunks, kChunk, ...], with zeros behind the last
/// token.
at::Tensor chunks_of(const at::Tensor& x) {
  const int64_t missing = (kChunk - x.size(1) % kChunk) % kChunk;
  at::Tensor y = x.transpose(1, 2);
  std::vector<int64_t> padding(static_cast<std::size_t>(2 * (x.dim() - 3)), 0);
  padding.insert(padding.end(), {0, missing});
  if (missing > 0) y = at::constant_pad_nd(y, padding);
  return y.unflatten(2, {-1, kChunk}).contiguous();
}

}  // namespace

// With G the sum of the decays from the beginning of a chunk, and S the state before the chunk, the
// state behind token i is exp(G_i) S + sum over j <= i of exp(G_i - G_j) k_j u_j^T, where
//   u_i = beta_i (v_i - exp(G_i) S^T k_i - sum over j < i of exp(G_i - G_j) (k_j . k_i) u_j).
// That is a triangular system (1 + L) U = beta V - (beta exp(G) K) S, which is solved for both
// parts of its right side before S is known.
at::Tensor gated_delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& beta, const at::Tensor& decay) {
  const int64_t tokens = q.size(1);
  const at::Tensor queries = chunks_of(q), keys = chunks_of(k), values = chunks_of(v);
  const at::Tensor rates = chunks_of(beta).unsqueeze(-1);
  const at::Tensor sums = chunks_of(decay).cumsum(-1);
  const at::Tensor later =
      at::ones({kChunk, kChunk}, q.options().dtype(at::kBool)).triu(1);  // j > i
  const at::Tensor between = (sums.unsqueeze(-1) - sums.unsqueeze(-2))
                                 .masked_fill(later, -std::numeric_limits<float>::infinity())
                                 .exp();  // exp(G_i - G_j) for j <= i
  const at::Tensor grown = sums.exp().unsqueeze(-1);
  const at::Tensor system = at::matmul(keys, keys.transpose(-1, -2)).mul(between).mul(rates);
  const at::Tensor right = at::cat({values * rates, keys * rates * grown}, -1);
  const at::Tensor solved = at::linalg_solve_triangular(
      system.tril(-1) + at::eye(kChunk, q.options()), right, /*upper=*/false, /*left=*/true,
      /*unitriangular=*/true);
  const at::Tensor own = solved.narrow(-1, 0, v.size(3));
  const at::Tensor of_state = solved.narrow(-1, v.size(3), k.size(3));
  const at::Tensor seen = at::matmul(queries, keys.transpose(-1, -2)).mul(between);
  const at::Tensor with_state = queries * grown;
  const at::Tensor whole = sums.select(-1, kChunk - 1);  // [batch, heads, chunks]
  const at::Tensor kept =
      keys * (whole.unsqueeze(-1) - sums).exp().unsqueeze(-1);  // exp(G_end - G_j) k_j
  at::Tensor state = at::zeros({q.size(0), q.size(2), q.size(3), v.size(3)}, q.options());
  std::vector<at::Tensor> outputs;
  for (int64_t c = 0; c < queries.size(2); c++) {
    const auto of = [c](const at::Tensor& t) { return t.select(2, c); };
    const at::Tensor update = of(own) - at::matmul(of(of_state), state);
    outputs.push_back(at::matmul(of(with_state), state) + at::matmul(of(seen), update));
    state = state * of(whole).exp().unsqueeze(-1).unsqueeze(-1) +
            at::matmul(of(kept).transpose(-1, -2), update);
  }
  return at::cat(outputs, 2).narrow(2, 0, tokens).transpose(1, 2);
}

}  // namespace aqhost
