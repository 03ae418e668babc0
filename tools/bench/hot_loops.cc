// Times each loop of a quantization on the CPU separately, and prints a lower bound of its time:
// the time of its operations at the rate of a large matrix product of the same type, or of its
// bytes at the rate of a copy. Both rates are measured in the same run.
//
//   hot_loops PLUGIN_DIR [WIDTH] [TOKENS] [float32|bfloat16]      default: 128 16384 float32

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "calibrate/hessian.h"
#include "forward/causal_attention.h"
#include "forward/fused.h"
#include "plugin/registry.h"
#include "quant/groups.h"
#include "quant/quantize.h"
#include "quant/solve.h"
#include "quant/sweep.h"

namespace aqhost {
namespace {

/// The seconds that `body` takes, the minimum of several rounds.
double seconds(const std::function<void()>& body) {
  constexpr double kMinimumSeconds = 0.5;
  double best = 1e9, all = 0;
  for (int round = 0; round < 3 || all < kMinimumSeconds; round++) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const double took =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::min(best, took);
    all += took;
  }
  return best;
}

/// The rates of the machine per second: operations of matrix products in `dtype` and in float32,
/// and bytes read or written.
struct Ceiling {
  double product, single, memory;

  explicit Ceiling(at::ScalarType dtype)
      : product(rate(dtype)), single(dtype == at::kFloat ? product : rate(at::kFloat)) {
    constexpr int64_t kBytes = 1 << 28;
    const at::Tensor from = at::ones(kBytes, at::kByte);
    at::Tensor to = at::zeros_like(from);
    memory = 2 * kBytes / seconds([&] { to.copy_(from); });
  }

  static double rate(at::ScalarType dtype) {
    constexpr int64_t kSize = 2048;
    const at::Tensor a = at::randn({kSize, kSize}).to(dtype), b = at::randn_like(a);
    return 2.0 * kSize * kSize * kSize / seconds([&] { at::mm(a, b); });
  }
};

void print(const std::string& name, double floor, const std::function<void()>& body) {
  const double took = seconds(body);
  fmt::print("| {} | {:.2f} | {:.2f} | {:.1f} |\n", name, 1e3 * took, 1e3 * floor, took / floor);
}

/// Times the loops of calibration: a linear map, the steps of attention and of an expert, and the
/// Hessian and the shift of their input.
void calibrating(const Ceiling& ceiling, int64_t width, int64_t tokens, at::ScalarType dtype) {
  constexpr int64_t kWindow = 512, kHead = 32;
  const int64_t windows = std::max<int64_t>(1, tokens / kWindow), n = windows * kWindow;
  const auto wide = static_cast<double>(width), rows = static_cast<double>(n);
  const auto bytes = static_cast<double>(at::elementSize(dtype));
  const at::Tensor x = at::randn({n, width}).to(dtype),
                   weight = at::randn({width, width}).to(dtype);
  const at::Tensor states = at::randn({n, width}), ones = at::ones({width}).to(dtype);
  print("linear map", 2 * rows * wide * wide / ceiling.product, [&] { at::linear(x, weight); });
  print("RMS norm of hidden states", rows * wide * (4 + bytes) / ceiling.memory,
        [&] { fused_rms_norm(states, ones, 1e-5F); });
  at::Tensor q = at::randn({windows, kWindow, width / kHead, kHead}).to(dtype);
  const at::Tensor k = at::randn_like(q), v = at::randn_like(q);
  print("attention, windows of 512", 2 * rows * kWindow * wide / ceiling.product, [&] {
    if (has_causal_attention(q))
      causal_attention(q, k, v, 0.1, 0);
    else
      at::scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), {},
                                       0, true);
  });
  const at::Tensor cos = at::ones({kWindow, kHead / 2}).to(dtype), sin = at::zeros_like(cos);
  print("rotary embedding", 2 * rows * wide * bytes / ceiling.memory,
        [&] { fused_rotate(q, cos, sin, false); });
  at::Tensor gate = at::randn_like(x);
  print("silu(gate) up", 3 * rows * wide * bytes / ceiling.memory,
        [&] { fused_silu_times(gate, x); });
  at::Tensor sums = at::zeros({n, width});
  const at::Tensor order = at::randperm(n), weights = at::rand({n});
  print("sum of weighted rows", rows * wide * (8 + bytes) / ceiling.memory,
        [&] { fused_add_rows(sums, order, weights, x); });
  Hessian hessian(width);
  print("Hessian", rows * wide * wide / ceiling.product, [&] { hessian.add(x, weights); });
  print("shift", 2 * rows * wide * wide / ceiling.product,
        [&] { hessian.add_shift(x, weights, gate, 1); });
}

/// Times the loops of the solve, for eight experts of 2 * width rows and width columns.
void solving(const Ceiling& ceiling, const Registry& registry, int64_t width) {
  constexpr int64_t kExperts = 8;
  const auto count = static_cast<double>(kExperts), wide = static_cast<double>(width);
  const auto format =
      registry.create_format("int4", {{"group_size", std::min<int64_t>(width, 128)}});
  const at::Tensor weights = at::randn({kExperts, 2 * width, width});
  const at::Tensor x = at::randn({kExperts, 4 * width, width});
  const at::Tensor hessians = at::bmm(x.transpose(1, 2), x);
  const double cube = count * wide * wide * wide, matrix = count * 2 * wide * wide;
  print("factor (float64)", 2 * 2 * cube / 3 / ceiling.single,
        [&] { factor_hessians(hessians, 0.1, true); });
  const Factors factors = factor_hessians(hessians, 0.1, true);
  const at::Tensor importance = factors.damped.diagonal(0, 1, 2).contiguous();
  QuantizedBatch batch = quantize_rtn(*format, weights, hessians, {});
  constexpr double kSearch =
      45;  // scales that are tried, with about six operations per weight each
  print("scale search", kSearch * 6 * matrix / ceiling.single,
        [&] { fit_groups(*format, weights, importance, batch.tensor_params); });
  print("round to nearest", matrix * 9 / ceiling.memory,
        [&] { round_groups(*format, weights, batch); });
  print("GPTQ", matrix * wide / ceiling.single,
        [&] { solve_described(*format, weights, factors, importance, true, 128, batch); });
  print("sweep", 2 * 2 * matrix * wide / ceiling.single,
        [&] { sweep_described(*format, weights, factors.damped, 1, batch); });
  const QuantizedMatrix whole = batch.matrix(0, 0, 2 * width);
  print("pack one matrix", 2 * wide * wide * 1.5 / ceiling.memory, [&] { format->pack(whole); });
}

void run(const std::vector<std::string>& args) {
  if (args.empty()) fail("a folder of plugins is missing");
  const at::NoGradGuard no_gradients;
  at::manual_seed(0);
  const int64_t width = args.size() > 1 ? std::stoll(args[1]) : 128;
  const int64_t tokens = args.size() > 2 ? std::stoll(args[2]) : 16384;
  const std::string type = args.size() > 3 ? args[3] : "float32";
  if (type != "float32" && type != "bfloat16") fail("\"{}\": expected float32 or bfloat16", type);
  const at::ScalarType dtype = type == "bfloat16" ? at::kBFloat16 : at::kFloat;
  const Registry registry({args[0]});
  const Ceiling ceiling(dtype);
  fmt::print("{} threads, width {}, {} tokens, {}\n", at::get_num_threads(), width, tokens,
             at::toString(dtype));
  fmt::print("products {:.0f} Gops ({:.0f} float32), copying {:.1f} GB/s\n\n",
             ceiling.product / 1e9, ceiling.single / 1e9, ceiling.memory / 1e9);
  fmt::print("| loop | ms | floor, ms | ms / floor |\n|---|---|---|---|\n");
  calibrating(ceiling, width, tokens, dtype);
  solving(ceiling, registry, width);
}

}  // namespace
}  // namespace aqhost

int main(int argc, char** argv) {
  try {
    aqhost::run({argv + 1, argv + argc});
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\nusage: hot_loops PLUGIN_DIR [WIDTH] [TOKENS] [float32|bfloat16]\n",
               e.what());
    return 1;
  }
}
