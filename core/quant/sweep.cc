#include "quant/sweep.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <aq/sdk/two_level.hpp>
#include <vector>

#include "base/interrupt.h"
#include "quant/products.h"
#include "quant/rounder.h"
#include "quant/tile.h"

namespace aqhost {
namespace {

constexpr int64_t kColumnBlock = 128;  // columns between two updates of the gradient, in whole
                                       // groups (or in parts of a group that is the whole matrix)

/// sums[r] += a[i][r] * b[i][r], summed over n columns i.
AQ_VECTOR_CLONES
void add_products(const float* a, const float* b, int64_t n, double* sums) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t r = 0; r < kRows; r++)
      sums[r] += static_cast<double>(a[i * kRows + r]) * static_cast<double>(b[i * kRows + r]);
}

/// The values that minimize the loss in one column: v - g / h.
AQ_VECTOR_CLONES
void best_values(const float* v, const float* g, float h, float* best) {
  for (int64_t r = 0; r < kRows; r++) best[r] = v[r] - g[r] / h;
}

/// A batch and the gradient of its loss, (values - weights) H.
class Sweeper {
 public:
  Sweeper(const Format& format, const at::Tensor& weights, const at::Tensor& hessians,
          QuantizedBatch& batch)
      : desc_(format.desc()),
        rounder_(desc_),
        count_(weights.size(0)),
        rows_(weights.size(1)),
        in_(weights.size(2)),
        width_(desc_.width(in_)),
        refits_(refits(desc_)),
        block_(desc_.group_size == 0
                   ? std::min(in_, kColumnBlock)
                   : std::min(in_, std::max(width_, kColumnBlock / width_ * width_))),
        weights_(weights),
        hessians_(hessians),
        batch_(batch),
        gradient_(row_products(batch.values - weights, hessians)),
        change_(at::empty({count_, rows_, block_}, at::kFloat)) {}

  void sweep() {
    const int64_t row_tasks = (rows_ + kRows - 1) / kRows;
    for (int64_t begin = 0; begin < in_; begin += block_) {
      check_interrupt();
      const int64_t n = std::min(block_, in_ - begin);
      at::parallel_for(0, count_ * row_tasks, 1, [&](int64_t first, int64_t last) {
        Work work;
        for (int64_t task = first; task < last; task++)
          sweep_rows(work, task / row_tasks, task % row_tasks * kRows, begin, n);
      });
      add_row_products(gradient_, change_.narrow(2, 0, n), hessians_.narrow(1, begin, n), 1);
    }
  }

  void finish() {
    batch_.loss.copy_(
        (batch_.values - weights_).mul_(gradient_).sum(2, false, at::kDouble).mul_(0.5));
  }

 private:
  /// A tile of rows and columns that is being worked on.
  struct Work {
    std::vector<float> values, gradient, change, product, sums;
    std::vector<uint8_t> codes;
    float step[kRows], zero[kRows], value[kRows], moved[kRows];
  };

  /// Sweeps rows [row, row + kRows) of matrix e in columns [begin, begin + n).
  void sweep_rows(Work& work, int64_t e, int64_t row, int64_t begin, int64_t n) {
    const int64_t rows = std::min(kRows, rows_ - row), at = (e * rows_ + row) * in_ + begin;
    const auto size = static_cast<std::size_t>(n * kRows);
    for (std::vector<float>* tile : {&work.values, &work.gradient, &work.product})
      tile->resize(size);
    work.codes.assign(size, 0);
    float* values = batch_.values.data_ptr<float>() + at;
    uint8_t* codes = batch_.codes.data_ptr<uint8_t>() + at;
    load_tile(values, in_, rows, n, work.values.data());
    load_tile(gradient_.data_ptr<float>() + at, in_, rows, n, work.gradient.data());
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < n; i++)
        work.codes[static_cast<std::size_t>(i * kRows + r)] = codes[r * in_ + i];
    work.change = work.values;

    const float* h = hessians_.data_ptr<float>() + (e * in_ + begin) * in_ + begin;
    for (int64_t i = 0; i < n; i += width_)
      sweep_group(work, {e, row, rows, (begin + i) / width_}, h, i, n);

    for (std::size_t i = 0; i < size; i++) work.change[i] = work.values[i] - work.change[i];
    store_tile(work.values.data(), rows, n, values, in_);
    store_tile(work.change.data(), rows, n, change_.data_ptr<float>() + (e * rows_ + row) * block_,
               block_);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < n; i++)
        codes[r * in_ + i] = work.codes[static_cast<std::size_t>(i * kRows + r)];
  }

  /// One group in `rows` rows, beginning at `row`.
  struct Group {
    int64_t e, row, rows, index;
  };

  /// Sweeps the group whose first column is i, of n columns in the tile. h is H from the tile's
  /// first column on.
  void sweep_group(Work& work, const Group& group, const float* h, int64_t i, int64_t n) {
    const float global =
        desc_.tensor_params > 0 ? batch_.tensor_params.data_ptr<float>()[group.e] : 1.0f;
    for (int64_t r = 0; r < kRows; r++) {
      const float* p = params_of(group, std::min(r, group.rows - 1));
      work.step[r] = p[0] / global;
      work.zero[r] = desc_.group_params > 1 ? p[1] : 0.0f;
    }
    const int64_t size = std::min(width_, n - i);
    if (refits_ && desc_.two_level())
      refit_two_level(work, group, h, i, size, n);
    else if (refits_)
      refit(work, group, global, h, i, size, n);
    for (int64_t c = i; c < i + size; c++) {
      float* v = work.values.data() + c * kRows;
      float* g = work.gradient.data() + c * kRows;
      const float* u = h + c * in_ + c;
      best_values(v, g, u[0], work.value);
      rounder_.round(kRows, work.value, work.step, work.zero, work.codes.data() + c * kRows,
                     work.value);
      for (int64_t r = 0; r < kRows; r++) work.moved[r] = v[r] - work.value[r];
      std::copy_n(work.value, kRows, v);
      subtract_outer(g + kRows, work.moved, u + 1, n - c - 1);
    }
  }

  /// Replaces scales by the least-squares scales for the codes of the group's `size` columns, where
  /// this lowers the loss.
  void refit(Work& work, const Group& group, float global, const float* h, int64_t i, int64_t size,
             int64_t n) {
    float* v = work.values.data() + i * kRows;
    float* g = work.gradient.data() + i * kRows;
    float* product = work.product.data();  // -V H, for the group's columns of V
    std::fill_n(product, (n - i) * kRows, 0.0f);
    for (int64_t c = 0; c < size; c++)
      subtract_outer(product, v + c * kRows, h + (i + c) * in_ + i, n - i);
    double slope[kRows] = {}, curvature[kRows] = {};  // of the loss, by the relative scale change
    add_products(v, g, size, slope);
    add_products(v, product, size, curvature);
    for (int64_t r = 0; r < kRows; r++) work.moved[r] = 0;
    for (int64_t r = 0; r < group.rows; r++) {
      const double bend = -curvature[r];
      if (!(bend > 0)) continue;
      float& scale = *params_of(group, r);
      const float wanted = scale * static_cast<float>(std::clamp(1 - slope[r] / bend, 0.5, 2.0));
      const float fitted = rounder_.round_scale(wanted);
      const double change = static_cast<double>(fitted) / static_cast<double>(scale) - 1;
      if (!(slope[r] * change + bend * change * change / 2 < 0)) continue;
      work.moved[r] = static_cast<float>(change);
      scale = fitted;
      work.step[r] = fitted / global;
    }
    for (int64_t c = 0; c < n - i; c++)
      for (int64_t r = 0; r < kRows; r++)
        g[c * kRows + r] -= work.moved[r] * product[c * kRows + r];
    for (int64_t c = 0; c < size; c++)
      rounder_.values(kRows, work.codes.data() + (i + c) * kRows, work.step, work.zero,
                      v + c * kRows);
  }

  /// The same for two-level scales. The loss is a quadratic function of the changes of scale and
  /// minimum; of the pairs around its minimum that can be stored, the best one is taken.
  void refit_two_level(Work& work, const Group& group, const float* h, int64_t i, int64_t size,
                       int64_t n) {
    float* v = work.values.data() + i * kRows;
    float* g = work.gradient.data() + i * kRows;
    float* product = work.product.data();  // -(V + minimum) H, for the group's columns of V
    std::fill_n(product, (n - i) * kRows, 0.0f);
    std::vector<float>& sums = work.sums;  // of the group's rows of H
    sums.assign(static_cast<std::size_t>(n - i), 0.0f);
    for (int64_t c = 0; c < size; c++) {
      for (int64_t r = 0; r < kRows; r++) v[c * kRows + r] += work.zero[r];
      subtract_outer(product, v + c * kRows, h + (i + c) * in_ + i, n - i);
      for (int64_t k = 0; k < n - i; k++)
        sums[static_cast<std::size_t>(k)] += h[(i + c) * in_ + i + k];
    }
    double slope[kRows] = {}, curvature[kRows] = {};  // by the relative change of the scale
    add_products(v, g, size, slope);
    add_products(v, product, size, curvature);
    double fall[kRows] = {}, cross[kRows] = {}, bend = 0;  // by the change of the minimum
    for (int64_t c = 0; c < size; c++) {
      bend += static_cast<double>(sums[static_cast<std::size_t>(c)]);
      for (int64_t r = 0; r < kRows; r++) {
        fall[r] -= static_cast<double>(g[c * kRows + r]);
        cross[r] += static_cast<double>(product[c * kRows + r]);
      }
    }
    float lowered[kRows] = {};
    std::fill_n(work.moved, kRows, 0.0f);
    for (int64_t r = 0; r < group.rows; r++) {
      float* p = params_of(group, r);
      const TwoLevelChange change =
          best_change(p, {slope[r], -curvature[r], fall[r], bend, cross[r]});
      work.moved[r] = change.scale;
      lowered[r] = change.minimum;
      work.step[r] = p[0];
      work.zero[r] = p[1];
    }
    for (int64_t c = 0; c < n - i; c++)
      for (int64_t r = 0; r < kRows; r++)
        g[c * kRows + r] -=
            work.moved[r] * product[c * kRows + r] + lowered[r] * sums[static_cast<std::size_t>(c)];
    for (int64_t c = 0; c < size; c++)
      rounder_.values(kRows, work.codes.data() + (i + c) * kRows, work.step, work.zero,
                      v + c * kRows);
  }

  /// The loss as a function of x, the relative change of a scale, and y, that of the minimum:
  /// slope x + bend x^2 / 2 + fall y + fall_bend y^2 / 2 + cross x y.
  struct TwoLevelLoss {
    double slope, bend, fall, fall_bend, cross;
    double at(double x, double y) const {
      return slope * x + bend * x * x / 2 + fall * y + fall_bend * y * y / 2 + cross * x * y;
    }
  };
  struct TwoLevelChange {
    float scale = 0, minimum = 0;  // x and y
  };

  /// Writes the best storable scale and minimum to p, and returns how they changed.
  TwoLevelChange best_change(float* p, const TwoLevelLoss& loss) const {
    constexpr int32_t kAround = 2;
    const aq::TwoLevelFit fit(desc_);
    const aq::TwoLevelParams before{p[0], p[1], p[2], p[3]};
    double x = loss.bend > 0 ? -loss.slope / loss.bend : 0;
    const double det = loss.bend * loss.fall_bend - loss.cross * loss.cross;
    if (desc_.minima() && det > 0) x = (loss.cross * loss.fall - loss.slope * loss.fall_bend) / det;
    const auto wanted = static_cast<float>(std::clamp(1 + x, 0.5, 2.0));
    const int32_t middle = fit.k_near(before.scale / before.d * wanted);
    double least = 0;
    TwoLevelChange best;
    for (int32_t k = middle - kAround; k <= middle + kAround; k++) {
      if (k == 0 || k < desc_.sub_min || k > desc_.sub_max) continue;
      const float scale = static_cast<float>(k) * before.d;
      const double relative = static_cast<double>(scale) / static_cast<double>(before.scale) - 1;
      double y = 0;
      if (desc_.minima() && loss.fall_bend > 0)
        y = -(loss.fall + loss.cross * relative) / loss.fall_bend;
      const int32_t m = fit.m_near(before.minimum + static_cast<float>(y), before.dmin);
      const float minimum = static_cast<float>(m) * before.dmin;
      y = static_cast<double>(minimum) - static_cast<double>(before.minimum);
      if (const double change = loss.at(relative, y); change < least) {
        least = change;
        best = {static_cast<float>(relative), static_cast<float>(y)};
        p[0] = scale;
        p[1] = minimum;
      }
    }
    return best;
  }

  float* params_of(const Group& group, int64_t r) const {
    const int64_t all = (group.e * rows_ + group.row + r) * desc_.groups(in_) + group.index;
    return batch_.params.data_ptr<float>() + all * desc_.group_params;
  }

  const FormatDesc& desc_;
  const Rounder rounder_;
  const int64_t count_, rows_, in_, width_;
  const bool refits_;
  const int64_t block_;  // columns between two updates of the gradient
  const at::Tensor weights_, hessians_;
  QuantizedBatch& batch_;
  at::Tensor gradient_, change_;
};

}  // namespace

void sweep_described(const Format& format, const at::Tensor& weights, const at::Tensor& hessians,
                     int sweeps, QuantizedBatch& batch) {
  Sweeper sweeper(format, weights, hessians, batch);
  for (int i = 0; i < sweeps; i++) sweeper.sweep();
  sweeper.finish();
}

}  // namespace aqhost
