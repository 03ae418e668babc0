#include "quant/solve_by_callbacks.h"

#include "base/interrupt.h"
#include "quant/products.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// Solves one matrix. `weights` [out, in] and `upper` are in solving order; unless groups are
/// static, they consist of consecutive columns.
class MatrixSolver {
 public:
  MatrixSolver(const Format& format, const at::Tensor& weights, const Factors& factors, int64_t e,
               const at::Tensor& importance, bool static_groups, QuantizedBatch& batch)
      : format_(format),
        desc_(format.desc()),
        e_(e),
        static_groups_(static_groups),
        order_(factors.order[e]),
        upper_(factors.upper[e]),
        importance_(importance[e]),
        batch_(batch),
        weights_(weights.index_select(1, order_)),
        rows_(weights.size(0)),
        width_(desc_.width(weights.size(1))) {}

  void solve() {
    const int64_t in = weights_.size(1), dim = desc_.vector_dim;
    const auto order = span_of<int64_t>(order_);
    for (int64_t begin = 0; begin < in; begin += dim) {
      if (begin % 128 == 0) check_interrupt();
      const int64_t column = order[static_cast<std::size_t>(begin)];
      const int64_t group = column / width_;
      if (!static_groups_ && begin % width_ == 0) fit(group, begin);
      const at::Tensor delta = quantize(column, group, begin);
      // Rounds dim columns at once. If D is their error, the columns after them change by -D
      // U_vv^-1 U_v,rest.
      const at::Tensor u = upper_.narrow(0, begin, dim);
      const int64_t rest = in - begin - dim;
      for_product_tiles(1, rows_, 1, [&](const ProductTile& t) {
        const auto rows = [&](const at::Tensor& of) { return of.narrow(0, t.row, t.rows); };
        const at::Tensor error = at::linalg_solve_triangular(u.narrow(1, begin, dim), rows(delta),
                                                             /*upper=*/true, /*left=*/false);
        rows(batch_.loss[e_]).add_(error.to(at::kDouble).square().sum(1), 0.5);
        if (rest > 0)
          rows(weights_)
              .narrow(1, begin + dim, rest)
              .addmm_(error, u.narrow(1, begin + dim, rest), 1, -1);
      });
    }
  }

 private:
  std::span<const float> tensor_params() const {
    const at::Tensor mine = batch_.tensor_params[e_];
    return {mine.data_ptr<float>(), static_cast<std::size_t>(mine.numel())};
  }

  void fit(int64_t group, int64_t begin) {
    const int64_t n = std::min(width_, weights_.size(1) - begin);
    const at::Tensor part = weights_.narrow(1, begin, n).contiguous();
    const at::Tensor h = importance_.narrow(0, begin, n).contiguous();
    const at::Tensor params =
        at::empty({rows_, static_cast<int64_t>(desc_.group_params)}, at::kFloat);
    format_.fit(span_of<float>(part), rows_, n, span_of<float>(h), tensor_params(),
                span_of<float>(params));
    batch_.params[e_].select(1, group).copy_(params);
  }

  /// Computes codes and values of vector_dim columns; returns weights - values.
  at::Tensor quantize(int64_t column, int64_t group, int64_t begin) {
    const int64_t dim = desc_.vector_dim;
    const at::Tensor w = weights_.narrow(1, begin, dim).contiguous();
    const at::Tensor params = batch_.params[e_].select(1, group).contiguous();
    const at::Tensor codes = at::empty({rows_, 1}, batch_.codes.options());
    const at::Tensor values = at::empty({rows_, dim}, at::kFloat);
    const std::span code_span{static_cast<std::byte*>(codes.data_ptr()),
                              static_cast<std::size_t>(rows_ * desc_.code_bytes())};
    format_.quantize(span_of<float>(w), rows_, dim, span_of<float>(params), tensor_params(),
                     code_span, span_of<float>(values));
    batch_.codes[e_].narrow(1, column / dim, 1).copy_(codes);
    batch_.values[e_].narrow(1, column, dim).copy_(values);
    return w - values;
  }

  const Format& format_;
  const FormatDesc& desc_;
  const int64_t e_;
  const bool static_groups_;
  const at::Tensor order_, upper_, importance_;
  QuantizedBatch& batch_;
  at::Tensor weights_;
  const int64_t rows_, width_;
};

}  // namespace

void solve_by_callbacks(const Format& format, const at::Tensor& weights, const Factors& factors,
                        const at::Tensor& importance, bool static_groups, QuantizedBatch& batch) {
  for (int64_t e = 0; e < weights.size(0); e++)
    MatrixSolver(format, weights[e], factors, e, importance, static_groups, batch).solve();
}

}  // namespace aqhost
