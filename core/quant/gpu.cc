#include "quant/gpu.h"

#include <algorithm>
#include <aq/sdk/grid.hpp>

#include "base/error.h"
#include "base/interrupt.h"
#include "quant/sweep.h"
#include "tensor/kernels.h"

namespace aqhost {
namespace {
constexpr int64_t kMaximumColumns = 128;  // maximum width of a block
// The columns behind a window are updated once for all of its blocks. A window is this wide, but
// has whole groups.
constexpr int64_t kWindow = 512;

int64_t window_columns(int64_t width) { return std::max(width, kWindow / width * width); }

template <typename T>
T* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() && tensor.numel() > 0 ? tensor.data_ptr<T>() : nullptr;
}

/// The arguments for fitting columns [begin, begin + cols) of weights [E, rows, in].
cuda::FitArgs fit_args(const FormatDesc& desc, const at::Tensor& weights, int64_t begin,
                       int64_t cols, const at::Tensor& importance, const at::Tensor& globals,
                       at::Tensor& params) {
  const int64_t in = weights.size(2), width = desc.width(in), groups = desc.groups(in);
  cuda::FitArgs args{};
  args.weights = weights.data_ptr<float>() + begin;
  args.row_stride = in;
  if (importance.defined()) args.importance = importance.data_ptr<float>() + begin;
  args.importance_stride = in;
  args.globals = data_or_null<float>(globals);
  args.params = params.data_ptr<float>() + begin / width * desc.group_params;
  args.param_stride = groups * desc.group_params;
  args.count = weights.size(0);
  args.rows = weights.size(1);
  args.cols = cols;
  args.width = width;
  return args;
}

/// Sets what solve and sweep take of columns [begin, begin + n), which are rounded to `codes` and
/// `values` [E, rows, in] with the parameters of `batch`.
void set_block(cuda::BlockArgs& args, const FormatDesc& desc, int64_t begin, int64_t n,
               const QuantizedBatch& batch, const at::Tensor& codes, const at::Tensor& values) {
  const int64_t in = values.size(2);
  args.params = batch.params.data_ptr<float>();
  args.globals = data_or_null<float>(batch.tensor_params);
  args.codes = codes.data_ptr<uint8_t>() + begin;
  args.values = values.data_ptr<float>() + begin;
  args.row_stride = in;
  args.count = values.size(0);
  args.rows = values.size(1);
  args.cols = in;
  args.width = desc.width(in);
  args.groups = desc.groups(in);
  args.n = n;
}

/// out = scale * (a b) with matrices that may be views; `sum` adds to what `out` has.
void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b, double scale,
              bool sum = false) {
  out.baddbmm_(a, b, sum ? 1 : 0, scale);
}

/// Rows or columns [begin, end) of matrices [E, rows, columns].
at::Tensor rows_in(const at::Tensor& t, int64_t begin, int64_t end) {
  return t.narrow(1, begin, end - begin);
}
at::Tensor columns_in(const at::Tensor& t, int64_t begin, int64_t end) {
  return t.narrow(2, begin, end - begin);
}

/// Replaces the lower triangles of symmetric a [E, n, n] (f64) by the inverses of their Cholesky
/// factors, and the upper ones by 0. With the factor [L11 0; L21 L22], the inverse is
/// [L11^-1 0; -L22^-1 L21 L11^-1 L22^-1], where L22 is the factor of A22 - L21 L21^T: so halves are
/// inverted one after the other, and everything else is matrix products. In each product of large
/// matrices, a quarter is left out that a triangle makes 0 or that nobody reads.
void invert_factors(const at::Tensor& a) {
  constexpr int64_t kSmall = 128, kLarge = 2048;
  const int64_t n = a.size(1);
  if (n <= kSmall) {
    enqueue(&GpuKernels::invert_factor, a,
            cuda::InvertFactorArgs{a.data_ptr<double>(), a.stride(0), a.stride(1), a.size(0), n});
    return;
  }
  const int64_t half = (n / 2 + kSmall - 1) / kSmall * kSmall, rest = n - half;
  const at::Tensor first = a.narrow(1, 0, half).narrow(2, 0, half);
  const at::Tensor second = a.narrow(1, half, rest).narrow(2, half, rest);
  const at::Tensor below = a.narrow(1, half, rest).narrow(2, 0, half);
  // where the halves are cut in two; 0: they are not
  const int64_t cut1 = n < kLarge ? 0 : half / 2, cut2 = n < kLarge ? 0 : rest / 2;
  invert_factors(first);
  const at::Tensor factor = at::empty_like(below, at::MemoryFormat::Contiguous);  // L21
  if (cut1 > 0)
    multiply(columns_in(factor, 0, cut1), columns_in(below, 0, cut1),
             rows_in(columns_in(first, 0, cut1), 0, cut1).transpose(1, 2), 1);
  multiply(columns_in(factor, cut1, half), below, rows_in(first, cut1, half).transpose(1, 2), 1);
  if (cut2 > 0)
    multiply(rows_in(columns_in(second, 0, cut2), 0, cut2), rows_in(factor, 0, cut2),
             rows_in(factor, 0, cut2).transpose(1, 2), -1, true);
  multiply(rows_in(second, cut2, rest), rows_in(factor, cut2, rest), factor.transpose(1, 2), -1,
           true);
  invert_factors(second);
  const at::Tensor product = at::empty_like(factor);  // L22^-1 L21
  if (cut2 > 0)
    multiply(rows_in(product, 0, cut2), rows_in(columns_in(second, 0, cut2), 0, cut2),
             rows_in(factor, 0, cut2), 1);
  multiply(rows_in(product, cut2, rest), rows_in(second, cut2, rest), factor, 1);
  multiply(columns_in(below, 0, cut1 > 0 ? cut1 : half), product,
           columns_in(first, 0, cut1 > 0 ? cut1 : half), -1);
  if (cut1 > 0)
    multiply(columns_in(below, cut1, half), columns_in(product, cut1, half),
             rows_in(columns_in(first, cut1, half), cut1, half), -1);
  a.narrow(1, 0, half).narrow(2, half, rest).zero_();
}

/// Calls the kernel of PermuteArgs.
void permute(const at::Tensor& in, const at::Tensor& row_order, const at::Tensor& column_order,
             cuda::Permuted types, const at::Tensor& out) {
  const at::Tensor from = in.contiguous(), columns = column_order.contiguous(),
                   lines = row_order.defined() ? row_order.contiguous() : row_order;
  TORCH_INTERNAL_ASSERT(out.is_contiguous());
  enqueue(
      &GpuKernels::permute, out,
      cuda::PermuteArgs{from.data_ptr(), out.data_ptr(), data_or_null<int64_t>(lines),
                        columns.data_ptr<int64_t>(), types, in.size(0), in.size(1), in.size(2)});
}

}  // namespace

at::Tensor permute_columns_on_gpu(const at::Tensor& in, const at::Tensor& order) {
  const bool bytes = in.scalar_type() == at::kByte;
  TORCH_INTERNAL_ASSERT(bytes || in.scalar_type() == at::kFloat);
  at::Tensor out = at::empty(in.sizes(), in.options());
  permute(in, {}, order, bytes ? cuda::Permuted::kByteToByte : cuda::Permuted::kFloatToFloat, out);
  return out;
}

at::Tensor inverse_factors_on_gpu(const at::Tensor& hessians, const at::Tensor& order) {
  constexpr int64_t kBytes = int64_t{1} << 30;  // of float64 matrices at once
  const int64_t n = hessians.size(1), at_once = std::max<int64_t>(1, kBytes / (8 * n * n));
  at::Tensor upper = at::empty_like(hessians);
  const at::Tensor backwards =
      at::arange(n - 1, -1, -1, order.options()).expand({hessians.size(0), n}).contiguous();
  for (int64_t begin = 0; begin < hessians.size(0); begin += at_once) {
    check_interrupt();
    const int64_t count = std::min(at_once, hessians.size(0) - begin);
    const at::Tensor h = hessians.narrow(0, begin, count);
    const at::Tensor reversed = order.narrow(0, begin, count).flip({1});
    const at::Tensor a = at::empty(h.sizes(), h.options().dtype(at::kDouble));
    permute(h, reversed, reversed, cuda::Permuted::kFloatToDouble, a);
    invert_factors(a);
    const at::Tensor turned = backwards.narrow(0, begin, count);
    permute(a, turned, turned, cuda::Permuted::kDoubleToFloat, upper.narrow(0, begin, count));
  }
  return upper;
}

bool gpu_rounds(const FormatDesc& desc) {
  return desc.host_rounds() && !desc.two_level() && desc.group_size != 0 &&
         desc.n_search <= cuda::Grid::kMaximumSearch;
}

cuda::Grid kernel_grid(const FormatDesc& desc) {
  cuda::Grid grid{};
  grid.desc = desc;
  grid.desc.values = grid.desc.search = nullptr;
  grid.desc.group_sizes = nullptr;
  std::copy_n(desc.search, desc.n_search, grid.search);
  grid.least = static_cast<float>(desc.int_min);
  grid.most = static_cast<float>(desc.int_max);
  const aq::Grid sdk_grid(desc);
  const std::vector<uint32_t>& order = sdk_grid.order();
  grid.n_values = static_cast<uint32_t>(order.size());
  grid.negative_zero = sdk_grid.negative_zero();
  std::copy(sdk_grid.bounds().begin(), sdk_grid.bounds().end(), grid.bounds);
  for (std::size_t i = 0; i < order.size(); i++) {
    grid.codes[i] = static_cast<uint8_t>(order[i]);
    grid.values[i] = desc.values[order[i]];
  }
  std::copy(desc.table().begin(), desc.table().end(), grid.by_code);
  return grid;
}

at::Tensor fit_groups_on_gpu(const FormatDesc& desc, const at::Tensor& weights,
                             const at::Tensor& importance, const at::Tensor& tensor_params) {
  const int64_t in = weights.size(2);
  at::Tensor params =
      at::empty({weights.size(0), weights.size(1), desc.groups(in), int64_t{desc.group_params}},
                weights.options());
  enqueue(&GpuKernels::fit, weights, kernel_grid(desc),
          fit_args(desc, weights, 0, in, importance, tensor_params, params));
  return params;
}

void round_groups_on_gpu(const FormatDesc& desc, const at::Tensor& weights, QuantizedBatch& batch) {
  const int64_t in = weights.size(2);
  const cuda::RoundArgs args{weights.data_ptr<float>(),
                             batch.params.data_ptr<float>(),
                             data_or_null<float>(batch.tensor_params),
                             batch.codes.data_ptr<uint8_t>(),
                             batch.values.data_ptr<float>(),
                             weights.size(0),
                             weights.size(1),
                             in,
                             desc.width(in),
                             desc.groups(in)};
  enqueue(&GpuKernels::round, weights, kernel_grid(desc), args);
}

void solve_described_on_gpu(const FormatDesc& desc, const at::Tensor& weights,
                            const Factors& factors, const at::Tensor& importance, bool actorder,
                            QuantizedBatch& batch) {
  const int64_t count = weights.size(0), rows = weights.size(1), in = weights.size(2);
  const int64_t width = desc.width(in);
  batch.codes.reset();  // made anew
  batch.values.reset();
  at::Tensor w = permute_columns_on_gpu(weights, factors.order);
  const at::Tensor codes = at::empty({count, rows, in}, weights.options().dtype(at::kByte));
  const at::Tensor values = at::empty_like(w);
  // without act-order, groups are fitted during the solve, so a block is one group or part of one
  const int64_t block = actorder ? kMaximumColumns : std::min(kMaximumColumns, std::min(width, in));
  const int64_t window = std::min(in, actorder ? kWindow : window_columns(width));
  const at::Tensor errors = at::empty({count, rows, window}, weights.options());
  const cuda::Grid grid = kernel_grid(desc);
  // passes the errors of columns [begin, end), which the window from `first` on holds, to the
  // columns from `end` to `last`
  const auto pass_on = [&](int64_t first, int64_t begin, int64_t end, int64_t last) {
    if (end == last) return;
    const at::Tensor upper = factors.upper.narrow(1, begin, end - begin).narrow(2, end, last - end);
    w.narrow(2, end, last - end)
        .baddbmm_(errors.narrow(2, begin - first, end - begin), upper, 1, -1);
  };
  for (int64_t first = 0; first < in; first += window) {
    check_interrupt();
    const int64_t last = std::min(first + window, in);
    for (int64_t begin = first, n = 0; begin < last; begin += n) {
      n = std::min(block, last - begin);
      if (!actorder) {
        n = std::min(n, width - begin % width);
        if (begin % width == 0)
          enqueue(&GpuKernels::fit, w, grid,
                  fit_args(desc, w, begin, std::min(width, in - begin), importance,
                           batch.tensor_params, batch.params));
      }
      cuda::SolveArgs args{};
      set_block(args, desc, begin, n, batch, codes, values);
      args.weights = w.data_ptr<float>() + begin;
      args.upper = factors.upper.data_ptr<float>() + begin * in + begin;
      args.order = factors.order.data_ptr<int64_t>() + begin;
      args.errors = errors.data_ptr<float>() + (begin - first);
      args.loss = batch.loss.data_ptr<double>();
      args.error_stride = window;
      enqueue(&GpuKernels::solve, w, grid, args);
      pass_on(first, begin, begin + n, last);
    }
    pass_on(first, first, last, in);
  }
  w.reset();
  const at::Tensor places = factors.order.argsort(int64_t{1});
  batch.codes = permute_columns_on_gpu(codes, places);
  batch.values = permute_columns_on_gpu(values, places);
}

namespace {

/// A batch and the gradient of its loss, (values - weights) H, as in sweep.cc.
class GpuSweeper {
 public:
  GpuSweeper(const FormatDesc& desc, const at::Tensor& weights, const at::Tensor& hessians,
             QuantizedBatch& batch)
      : desc_(desc),
        grid_(kernel_grid(desc)),
        count_(weights.size(0)),
        rows_(weights.size(1)),
        in_(weights.size(2)),
        width_(desc.width(in_)),
        weights_(weights),
        hessians_(hessians),
        batch_(batch) {}

  void sweep() {
    gradient_ = at::bmm(batch_.values - weights_, hessians_);
    const bool refit_scales = refits(desc_);
    const int64_t part =
        refit_scales ? width_ : std::max(width_, kMaximumColumns / width_ * width_);
    const int64_t window = window_columns(part);
    for (int64_t first = 0; first < in_; first += window) {
      check_interrupt();
      const int64_t last = std::min(first + window, in_);
      const at::Tensor values = batch_.values.narrow(2, first, last - first);
      const at::Tensor before = last < in_ ? values.clone() : at::Tensor();
      for (int64_t begin = first; begin < last; begin += part) {
        const int64_t end = std::min(begin + part, last);
        if (refit_scales) follow(refit(begin, end - begin), begin, begin, last);
        for (int64_t at = begin; at < end; at += kMaximumColumns) {
          const int64_t n = std::min(kMaximumColumns, end - at);
          follow(choose_codes(at, n), at, at + n, last);
        }
      }
      if (before.defined()) follow(values - before, first, last, in_);
    }
  }

 private:
  /// Both return the change of the values, [E, rows, n].
  at::Tensor refit(int64_t begin, int64_t n) {
    const at::Tensor products = at::bmm(batch_.values.narrow(2, begin, n),
                                        hessians_.narrow(1, begin, n).narrow(2, begin, n));
    at::Tensor change = at::empty_like(products);
    cuda::RefitArgs args{};
    args.codes = batch_.codes.data_ptr<uint8_t>() + begin;
    args.values = batch_.values.data_ptr<float>() + begin;
    args.gradient = gradient_.data_ptr<float>() + begin;
    args.products = products.data_ptr<float>();
    args.params = batch_.params.data_ptr<float>() + begin / width_ * desc_.group_params;
    args.globals = data_or_null<float>(batch_.tensor_params);
    args.change = change.data_ptr<float>();
    args.row_stride = in_;
    args.param_stride = desc_.groups(in_) * desc_.group_params;
    args.count = count_;
    args.rows = rows_;
    args.n = n;
    enqueue(&GpuKernels::refit, gradient_, grid_, args);
    return change;
  }

  at::Tensor choose_codes(int64_t begin, int64_t n) {
    at::Tensor change = at::empty({count_, rows_, n}, gradient_.options());
    cuda::SweepArgs args{};
    set_block(args, desc_, begin, n, batch_, batch_.codes, batch_.values);
    args.hessians = hessians_.data_ptr<float>() + begin * in_ + begin;
    args.gradient = gradient_.data_ptr<float>() + begin;
    args.change = change.data_ptr<float>();
    args.begin = begin;
    enqueue(&GpuKernels::sweep, gradient_, grid_, args);
    return change;
  }

  /// Updates columns [first, last) of the gradient after a change of the values from column `begin`
  /// on.
  void follow(const at::Tensor& change, int64_t begin, int64_t first, int64_t last) {
    if (first == last) return;
    const at::Tensor h = hessians_.narrow(1, begin, change.size(2)).narrow(2, first, last - first);
    gradient_.narrow(2, first, last - first).baddbmm_(change, h);
  }

  const FormatDesc& desc_;
  const cuda::Grid grid_;
  const int64_t count_, rows_, in_, width_;
  const at::Tensor &weights_, &hessians_;
  QuantizedBatch& batch_;
  at::Tensor gradient_;  // of the columns that are still to be visited in this sweep
};

}  // namespace

void sweep_described_on_gpu(const FormatDesc& desc, const at::Tensor& weights,
                            const at::Tensor& hessians, int sweeps, QuantizedBatch& batch) {
  GpuSweeper sweeper(desc, weights, hessians, batch);
  for (int i = 0; i < sweeps; i++) sweeper.sweep();
}

}  // namespace aqhost
