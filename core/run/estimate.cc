#include "run/estimate.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <utility>

#include "forward/compute_type.h"
#include "run/calibrated_run.h"
#include "run/memory_need.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

/// Rates of bfloat16 products as measured on an H200 (an H100 has the same units), and on an A100
/// the same part of the datasheet's; the others are those of the datasheets.
struct KnownGpu {
  const char* name;  // part of the driver's name
  double bfloat16, tf32, float32, float64;
};
constexpr std::array<KnownGpu, 3> kKnownGpus{{{"H200", 790e12, 494e12, 60e12, 67e12},
                                              {"H100", 790e12, 494e12, 60e12, 67e12},
                                              {"A100", 250e12, 156e12, 19.5e12, 19.5e12}}};

/// How many times the floor a run takes, as tools/bench/README.md has measured it.
struct Relation {
  double least, most;
};
constexpr Relation kOnGpu{2.6, 5.2};     // layers behind the first, on an H200
constexpr Relation kOnCpu{0.7, 2.1};     // whole runs on two cores of three kinds of CPU
constexpr Relation kRounding{2.0, 4.0};  // the scale search alone, on the same CPUs

constexpr double kStartOnCpu = 1, kStartOnGpu = 3;  // seconds of a run besides its layers
constexpr double kFileRate = 4e9;                   // bytes per second from the page cache
constexpr double kHashRate =
    1.45e9;                      // bytes per second of one thread, which hashes what is written
constexpr int64_t kScales = 45;  // that are tried for each group of weights

/// Products of n x n matrices per second, times their operations: the best of some.
double product_rate(at::Device device, at::ScalarType type, int64_t n) {
  const at::Tensor a = at::ones({n, n}, at::TensorOptions(device).dtype(type));
  double best = 0;
  for (int i = 0; i < 4; i++) {
    synchronize(device);
    const auto begin = std::chrono::steady_clock::now();
    at::matmul(a, a);
    synchronize(device);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / took.count());
  }
  return best;
}

/// The operations of a layer by the type in which they compute, and the bytes of its files.
struct Work {
  double half = 0, tf32 = 0, float32 = 0, float64 = 0;
  double read = 0, written = 0;
};

double product(std::initializer_list<int64_t> factors) {
  double result = 1;
  for (const int64_t factor : factors) result *= static_cast<double>(factor);
  return result;
}

/// The operations of attention itself for `tokens` tokens in windows of `seqlen`, half of whose
/// products are masked.
double attention_operations(const AttentionDesc& a, int64_t tokens, int64_t seqlen) {
  if (a.kind == AQ_ATTN_CUSTOM) return 0;  // only the adapter knows
  if (a.kind == AQ_ATTN_DELTA) return 8 * product({tokens, a.n_heads, a.head_dim, a.value_dim});
  const int64_t keys =
      a.sliding_window > 0 ? std::min(2 * int64_t{a.sliding_window}, seqlen) : seqlen;
  const int64_t value = a.kind == AQ_ATTN_LATENT ? a.value_dim : a.head_dim;
  return product({tokens, keys, a.n_heads, a.head_dim + value});
}

/// Adds the solve of modules with `rows` rows in all that share an input of `cols` features, whose
/// Hessian is of `tokens` tokens (with those for the shift).
void add_solve(Work& work, int64_t rows, int64_t cols, double tokens) {
  work.half += 2 * tokens * product({cols, cols});
  work.float64 += 2 * product({cols, cols, cols}) / 3;
  work.tf32 += 12 * product({rows, cols, cols});
}

/// Layer by layer, and last what is outside the layers.
std::vector<Work> work_of(const Source& source, const Model& model, const Plan& plan,
                          int64_t tokens, int64_t original_tokens, int64_t seqlen) {
  const int32_t layers = model.desc().n_layers;
  std::vector<Work> all(static_cast<std::size_t>(layers) + 1);
  const bool runs = plan.runs_model();
  const int64_t n = tokens + original_tokens;
  // (layer, expert, role) of modules that share an input -> features, rows and tokens
  std::map<std::array<int32_t, 3>, std::pair<int64_t, int64_t>> groups;
  const auto tokens_of = [&](int32_t layer, int32_t expert) {
    const double share = layer < 0 || expert < 0 ? 1
                                                 : static_cast<double>(model.ffn(layer).top_k) /
                                                       model.ffn(layer).n_experts;
    return share * static_cast<double>(n);
  };
  const auto at = [&](int32_t layer) -> Work& {
    return all[static_cast<std::size_t>(layer < 0 ? layers : layer)];
  };
  double rest = static_cast<double>(source.stored_size().bytes);
  for (const PlannedModule& m : plan.modules) {
    const aq_tensor_key& key = m.module->key;
    Work& work = at(key.layer);
    const auto weights = static_cast<double>(m.weights());
    const TensorInfo& tensor = *source.find(m.module->weight.name);  // may hold several modules
    const double stored = weights * static_cast<double>(source.stored_bytes(tensor.name)) /
                          static_cast<double>(tensor.numel());
    rest -= stored;
    work.read += stored;
    work.written += m.format ? static_cast<double>(m.stored_bits()) / 8
                             : weights * static_cast<double>(dtype_size(tensor.dtype));
    if (runs && key.layer >= 0) work.half += 2 * tokens_of(key.layer, key.expert) * weights;
    if (!m.format) continue;
    work.float32 += 8 * kScales * weights;
    if (m.recipe.algorithm == "rtn") continue;
    auto& [cols, rows] = groups[{key.layer, key.expert, fused_role(key.role)}];
    cols = m.module->in_features;
    rows += m.module->out_features;
  }
  for (const auto& [key, group] : groups)
    add_solve(at(key[0]), group.second, group.first, tokens_of(key[0], key[1]));
  for (int32_t l = 0; runs && l < layers; l++)
    at(l).half += attention_operations(model.attention(l, seqlen), n, seqlen);
  all.back().read += rest;
  all.back().written += rest;
  return all;
}

int64_t peak(const MemoryNeed& need) {
  return std::max(need.layers + need.solver, need.states + need.embedding);
}

}  // namespace

MachineRates machine_rates(const std::string& name) {
  const std::string gpu = gpu_name(name);
  for (const KnownGpu& known : kKnownGpus)
    if (gpu.find(known.name) != gpu.npos)
      return {gpu, false, false, known.bfloat16, known.tf32, known.float32, known.float64};
  const at::Device device = open_device(name);
  MachineRates rates{gpu.empty() ? "the CPU" : gpu};
  rates.cpu = device.is_cpu();
  if (rates.cpu) {
    // also for bfloat16, because our own products do not use the matrix unit of a CPU
    rates.bfloat16 = rates.tf32 = rates.float32 = product_rate(device, at::kFloat, 1024);
    rates.float64 = rates.float32 / 2;
    return rates;
  }
  rates.bfloat16 = product_rate(device, at::kBFloat16, 8192);
  rates.float32 = product_rate(device, at::kFloat, 4096);
  rates.float64 = product_rate(device, at::kDouble, 2048);
  const Tf32Products tf32(device);
  rates.tf32 = product_rate(device, at::kFloat, 4096);
  return rates;
}

RunEstimate estimate_run(const Source& source, const Model& model, const Plan& plan,
                         int64_t windows, int64_t seqlen, const MachineRates& rates) {
  const int64_t tokens = windows * seqlen;
  const int64_t original_tokens = original_windows(plan, windows, seqlen) * seqlen;
  const at::ScalarType type =
      compute_type("auto", source, rates.cpu ? at::Device(at::kCPU) : at::Device(at::kCUDA, 0));
  const double half = type == at::kBFloat16 ? rates.bfloat16 : rates.float32;
  const Relation relation = !plan.runs_model() ? kRounding : rates.cpu ? kOnCpu : kOnGpu;
  RunEstimate estimate;
  estimate.least_seconds = estimate.most_seconds = rates.cpu ? kStartOnCpu : kStartOnGpu;
  for (const Work& w : work_of(source, model, plan, tokens, original_tokens, seqlen)) {
    const double floor =
        w.half / half + w.tf32 / rates.tf32 + w.float32 / rates.float32 + w.float64 / rates.float64;
    const double files = std::max(w.read / kFileRate, w.written / kHashRate);  // by other threads
    estimate.least_seconds += std::max(relation.least * floor, files);
    estimate.most_seconds += std::max(relation.most * floor, files);
  }
  if (!plan.runs_model()) return estimate;
  const MemoryNeed need =
      memory_need(source, model, plan, tokens, original_tokens, type, rates.cpu);
  estimate.memory_bytes = peak(need);
  estimate.least_memory_bytes = peak(without_states(need));
  return estimate;
}

}  // namespace aqhost
