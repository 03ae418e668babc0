#include "quant/solve.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "base/interrupt.h"
#include "quant/products.h"
#include "quant/rounder.h"
#include "quant/tile.h"

namespace aqhost {
namespace {

AQ_VECTOR_CLONES
void column_error(const float* w, const float* values, float diagonal, float* err, double* loss) {
  for (int64_t r = 0; r < kRows; r++) {
    err[r] = (w[r] - values[r]) / diagonal;
    loss[r] += 0.5 * static_cast<double>(err[r]) * static_cast<double>(err[r]);
  }
}

/// The number of columns between two updates of the columns after them. It is such that columns
/// which are fitted together (`fitted` of them, unless it is not positive) and span several blocks
/// always begin at the start of a block.
int64_t block_columns(int64_t wanted, int64_t fitted) {
  if (fitted <= 0 || fitted % wanted == 0) return wanted;
  return fitted < wanted ? wanted / fitted * fitted : fitted;
}

/// Solves one batch of matrices. All tensors have their columns in solving order.
class RowSolver {
 public:
  RowSolver(const Format& format, const at::Tensor& weights, const Factors& factors,
            const at::Tensor& importance, bool actorder, int64_t block, QuantizedBatch& batch)
      : desc_(format.desc()),
        rounder_(desc_),
        count_(weights.size(0)),
        rows_(weights.size(1)),
        in_(weights.size(2)),
        groups_(desc_.groups(in_)),
        width_(desc_.width(in_)),
        n_params_(desc_.group_params),
        fit_on_the_way_(!actorder && desc_.group_size > 0),
        block_(std::min(
            in_, block_columns(block, desc_.two_level() ? desc_.super_size : desc_.group_size))),
        factors_(factors),
        importance_(importance),
        batch_(batch) {
    const at::Tensor order = factors.order.unsqueeze(1).expand({count_, rows_, in_});
    weights_ = weights.gather(2, order);
    codes_ = at::empty({count_, rows_, in_}, at::kByte);
    values_ = at::empty({count_, rows_, in_}, at::kFloat);
    errors_ = at::empty({count_, rows_, block_}, at::kFloat);
  }

  void solve() {
    const int64_t row_tasks = (rows_ + kRows - 1) / kRows;
    for (int64_t begin = 0; begin < in_; begin += block_) {
      check_interrupt();
      const int64_t n = std::min(block_, in_ - begin), rest = in_ - begin - n;
      at::parallel_for(0, count_ * row_tasks, 1, [&](int64_t first, int64_t last) {
        Work work;
        for (int64_t task = first; task < last; task++)
          solve_rows(work, task / row_tasks, task % row_tasks * kRows, begin, n);
      });
      if (rest == 0) break;
      const at::Tensor upper = factors_.upper.narrow(1, begin, n).narrow(2, begin + n, rest);
      add_row_products(weights_.narrow(2, begin + n, rest), errors_.narrow(2, 0, n), upper, -1);
    }
    const at::Tensor order = factors_.order.unsqueeze(1).expand({count_, rows_, in_});
    batch_.codes.scatter_(2, order, codes_);
    batch_.values.scatter_(2, order, values_);
  }

 private:
  struct Work {
    std::vector<float> w, err, step, zero, values, group;
    std::vector<uint8_t> codes;
    std::vector<double> loss;
    Rounder::Scratch scratch;
  };

  /// Takes rows [row, row + kRows) of matrix e through columns [begin, begin + n).
  void solve_rows(Work& work, int64_t e, int64_t row, int64_t begin, int64_t n) {
    const int64_t rows = std::min(kRows, rows_ - row);
    load(work, e, row, rows, begin, n);
    const float* upper = factors_.upper.data_ptr<float>() + e * in_ * in_;
    const int64_t* order = factors_.order.data_ptr<int64_t>() + e * in_;
    int64_t group = -1;
    for (int64_t i = 0; i < n; i++) {
      const int64_t column = begin + i, g = order[column] / width_;
      if (fit_on_the_way_ && column % width_ == 0) fit(work, e, row, rows, begin, i, n);
      if (g != group) load_params(work, e, row, rows, g);
      group = g;
      float* w = work.w.data() + i * kRows;
      float* err = work.err.data() + i * kRows;
      float* values = work.values.data() + i * kRows;
      rounder_.round(kRows, w, work.step.data(), work.zero.data(), work.codes.data() + i * kRows,
                     values);
      const float* u = upper + column * in_ + column;
      column_error(w, values, u[0], err, work.loss.data());
      subtract_outer(w + kRows, err, u + 1, n - i - 1);
    }
    store(work, e, row, rows, begin, n);
  }

  void load(Work& work, int64_t e, int64_t row, int64_t rows, int64_t begin, int64_t n) {
    const auto size = static_cast<std::size_t>(n * kRows);
    work.w.resize(size);
    work.err.resize(size);
    work.values.resize(size);
    work.codes.resize(size);
    work.step.assign(kRows, 1);
    work.zero.assign(kRows, 0);
    work.loss.assign(kRows, 0);
    load_tile(weights_.data_ptr<float>() + (e * rows_ + row) * in_ + begin, in_, rows, n,
              work.w.data());
  }

  void load_params(Work& work, int64_t e, int64_t row, int64_t rows, int64_t g) {
    const float* params = batch_.params.data_ptr<float>();
    const float global = global_of(e);
    for (int64_t r = 0; r < rows; r++) {
      const float* p = params + (((e * rows_ + row + r) * groups_) + g) * n_params_;
      work.step[static_cast<std::size_t>(r)] = p[0] / global;
      if (n_params_ > 1) work.zero[static_cast<std::size_t>(r)] = p[1];
    }
  }

  /// Fits the group that begins at column begin + i to the current weights. Where a super-group
  /// begins, all of its groups are fitted; then d and dmin stay.
  void fit(Work& work, int64_t e, int64_t row, int64_t rows, int64_t begin, int64_t i, int64_t n) {
    const int64_t first = begin + i;
    const bool opens = desc_.two_level() && first % desc_.super_size == 0;
    const int64_t size = std::min(opens ? desc_.super_size : width_, in_ - first);
    const float* later = weights_.data_ptr<float>();
    const float* h = importance_.data_ptr<float>() + e * in_ + first;
    float* params = batch_.params.data_ptr<float>();
    work.group.resize(static_cast<std::size_t>(size));
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t c = 0; c < size; c++)
        work.group[static_cast<std::size_t>(c)] =
            i + c < n ? work.w[static_cast<std::size_t>((i + c) * kRows + r)]
                      : later[(e * rows_ + row + r) * in_ + first + c];
      float* p = params + (((e * rows_ + row + r) * groups_) + first / width_) * n_params_;
      if (opens) rounder_.fit_two_level(work.group.data(), size, h, p);
      if (desc_.two_level() && !opens) rounder_.refit_two_level(work.group.data(), size, h, p);
      if (desc_.two_level()) continue;
      const aq::GroupParams fitted =
          rounder_.fit(work.group.data(), size, h, global_of(e), work.scratch);
      p[0] = fitted.scale;
      if (n_params_ > 1) p[1] = fitted.zero;
    }
  }

  void store(const Work& work, int64_t e, int64_t row, int64_t rows, int64_t begin, int64_t n) {
    const int64_t base = (e * rows_ + row) * in_ + begin;
    store_tile(work.values.data(), rows, n, values_.data_ptr<float>() + base, in_);
    store_tile(work.err.data(), rows, n, errors_.data_ptr<float>() + (e * rows_ + row) * block_,
               block_);
    uint8_t* codes = codes_.data_ptr<uint8_t>() + base;
    double* loss = batch_.loss.data_ptr<double>() + e * rows_ + row;
    for (int64_t r = 0; r < rows; r++) {
      for (int64_t i = 0; i < n; i++)
        codes[r * in_ + i] = work.codes[static_cast<std::size_t>(i * kRows + r)];
      loss[r] += work.loss[static_cast<std::size_t>(r)];
    }
  }

  float global_of(int64_t e) const {
    return desc_.tensor_params > 0 ? batch_.tensor_params.data_ptr<float>()[e] : 1.0f;
  }

  const FormatDesc& desc_;
  const Rounder rounder_;
  const int64_t count_, rows_, in_, groups_, width_, n_params_;
  const bool fit_on_the_way_;
  const int64_t block_;
  const Factors& factors_;
  const at::Tensor& importance_;
  QuantizedBatch& batch_;
  at::Tensor weights_, values_, errors_, codes_;
};

}  // namespace

void solve_described(const Format& format, const at::Tensor& weights, const Factors& factors,
                     const at::Tensor& importance, bool actorder, int64_t block,
                     QuantizedBatch& batch) {
  RowSolver(format, weights, factors, importance, actorder, block, batch).solve();
}

}  // namespace aqhost
