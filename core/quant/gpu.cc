#include "quant/gpu.h"

#include <algorithm>
#include <aq/sdk/grid.hpp>
#include <boost/dll/shared_library.hpp>

#include "base/error.h"
#include "base/interrupt.h"
#include "cuda/kernels.h"
#include "quant/sweep.h"
#include "tensor/device.h"

namespace aqhost {
namespace {
namespace dll = boost::dll;

constexpr int64_t kMaximumColumns = 128;  // maximum width of a block

struct Kernels {
  dll::shared_library library;
  cuda::AqCudaFit* fit;
  cuda::AqCudaRound* round;
  cuda::AqCudaSolve* solve;
  cuda::AqCudaRefit* refit;
  cuda::AqCudaSweep* sweep;
};

Kernels open_kernels() {
  const std::filesystem::path file = gpu_module();
  Kernels kernels;
  try {
    kernels.library.load(file.string(), dll::load_mode::rtld_now | dll::load_mode::rtld_local);
  } catch (const std::exception& e) {
    fail("{}: the GPU module does not load ({}); use --device cpu, or build with a CUDA toolkit",
         file.string(), e.what());
  }
  kernels.fit = &kernels.library.get<cuda::AqCudaFit>("aq_cuda_fit");
  kernels.round = &kernels.library.get<cuda::AqCudaRound>("aq_cuda_round");
  kernels.solve = &kernels.library.get<cuda::AqCudaSolve>("aq_cuda_solve");
  kernels.refit = &kernels.library.get<cuda::AqCudaRefit>("aq_cuda_refit");
  kernels.sweep = &kernels.library.get<cuda::AqCudaSweep>("aq_cuda_sweep");
  return kernels;
}

const Kernels& kernels() {
  static const Kernels opened = open_kernels();
  return opened;
}

void check(const char* error) {
  if (error != nullptr) fail("a GPU kernel failed: {}", error);
}

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

}  // namespace

bool gpu_rounds(const FormatDesc& desc) {
  return desc.host_rounds() && desc.group_size != 0 && desc.n_search <= cuda::Grid::kMaximumSearch;
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
  check(kernels().fit(kernel_grid(desc),
                      fit_args(desc, weights, 0, in, importance, tensor_params, params),
                      weights.get_device(), nullptr));
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
  check(kernels().round(kernel_grid(desc), args, weights.get_device(), nullptr));
}

void solve_described_on_gpu(const FormatDesc& desc, const at::Tensor& weights,
                            const Factors& factors, const at::Tensor& importance, bool actorder,
                            QuantizedBatch& batch) {
  const int64_t count = weights.size(0), rows = weights.size(1), in = weights.size(2);
  const int64_t width = desc.width(in);
  const at::Tensor order = factors.order.unsqueeze(1).expand({count, rows, in});
  at::Tensor w = weights.gather(2, order);
  const at::Tensor codes = at::empty({count, rows, in}, weights.options().dtype(at::kByte));
  const at::Tensor values = at::empty_like(w);
  // without act-order, groups are fitted during the solve, so a block is one group or part of one
  const int64_t block = actorder ? kMaximumColumns : std::min(kMaximumColumns, std::min(width, in));
  const at::Tensor errors = at::empty({count, rows, block}, weights.options());
  const cuda::Grid grid = kernel_grid(desc);
  for (int64_t begin = 0, n = 0; begin < in; begin += n) {
    check_interrupt();
    n = std::min(block, in - begin);
    if (!actorder) {
      n = std::min(n, width - begin % width);
      if (begin % width == 0)
        check(kernels().fit(grid,
                            fit_args(desc, w, begin, std::min(width, in - begin), importance,
                                     batch.tensor_params, batch.params),
                            weights.get_device(), nullptr));
    }
    cuda::SolveArgs args{};
    args.weights = w.data_ptr<float>() + begin;
    args.upper = factors.upper.data_ptr<float>() + begin * in + begin;
    args.order = factors.order.data_ptr<int64_t>() + begin;
    args.params = batch.params.data_ptr<float>();
    args.globals = data_or_null<float>(batch.tensor_params);
    args.codes = codes.data_ptr<uint8_t>() + begin;
    args.values = values.data_ptr<float>() + begin;
    args.errors = errors.data_ptr<float>();
    args.loss = batch.loss.data_ptr<double>();
    args.row_stride = in;
    args.error_stride = block;
    args.count = count;
    args.rows = rows;
    args.cols = in;
    args.width = width;
    args.groups = desc.groups(in);
    args.n = n;
    check(kernels().solve(grid, args, weights.get_device(), nullptr));
    const int64_t rest = in - begin - n;
    if (rest == 0) break;
    const at::Tensor upper = factors.upper.narrow(1, begin, n).narrow(2, begin + n, rest);
    w.narrow(2, begin + n, rest).baddbmm_(errors.narrow(2, 0, n), upper, 1, -1);
  }
  batch.codes.scatter_(2, order, codes);
  batch.values.scatter_(2, order, values);
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
        hessians_(hessians),
        batch_(batch),
        gradient_(at::bmm(batch.values - weights, hessians)) {}

  /// `last`: no other sweep follows, so that the gradient of columns before the current one is not
  /// needed.
  void sweep(bool last) {
    const bool refit_scales = refits(desc_);
    const int64_t part =
        refit_scales ? width_ : std::max(width_, kMaximumColumns / width_ * width_);
    for (int64_t begin = 0; begin < in_; begin += part) {
      check_interrupt();
      const int64_t end = std::min(begin + part, in_);
      if (refit_scales) follow(refit(begin, end - begin), begin, last);
      for (int64_t at = begin; at < end; at += kMaximumColumns)
        follow(choose_codes(at, std::min(kMaximumColumns, end - at)), at, last);
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
    check(kernels().refit(grid_, args, gradient_.get_device(), nullptr));
    return change;
  }

  at::Tensor choose_codes(int64_t begin, int64_t n) {
    at::Tensor change = at::empty({count_, rows_, n}, gradient_.options());
    cuda::SweepArgs args{};
    args.hessians = hessians_.data_ptr<float>() + begin * in_ + begin;
    args.gradient = gradient_.data_ptr<float>() + begin;
    args.params = batch_.params.data_ptr<float>();
    args.globals = data_or_null<float>(batch_.tensor_params);
    args.codes = batch_.codes.data_ptr<uint8_t>() + begin;
    args.values = batch_.values.data_ptr<float>() + begin;
    args.change = change.data_ptr<float>();
    args.row_stride = in_;
    args.count = count_;
    args.rows = rows_;
    args.cols = in_;
    args.width = width_;
    args.groups = desc_.groups(in_);
    args.begin = begin;
    args.n = n;
    check(kernels().sweep(grid_, args, gradient_.get_device(), nullptr));
    return change;
  }

  /// Updates the gradient after a change of the values from column `begin` on.
  void follow(const at::Tensor& change, int64_t begin, bool last) {
    const int64_t from = last ? begin : 0;
    const at::Tensor h = hessians_.narrow(1, begin, change.size(2)).narrow(2, from, in_ - from);
    gradient_.narrow(2, from, in_ - from).baddbmm_(change, h);
  }

  const FormatDesc& desc_;
  const cuda::Grid grid_;
  const int64_t count_, rows_, in_, width_;
  const at::Tensor& hessians_;
  QuantizedBatch& batch_;
  at::Tensor gradient_;
};

}  // namespace

void sweep_described_on_gpu(const FormatDesc& desc, const at::Tensor& weights,
                            const at::Tensor& hessians, int sweeps, QuantizedBatch& batch) {
  GpuSweeper sweeper(desc, weights, hessians, batch);
  for (int i = 1; i <= sweeps; i++) sweeper.sweep(i == sweeps);
}

}  // namespace aqhost
