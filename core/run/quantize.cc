#include "run/quantize.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "export/quantization_config.h"
#include "forward/compute_type.h"
#include "forward/decoder.h"
#include "forward/layer.h"
#include "plugin/tensor_check.h"
#include "quant/gptq.h"
#include "run/exporter.h"
#include "run/layer_quantizer.h"
#include "run/layer_reader.h"
#include "run/memory_need.h"
#include "run/refine.h"
#include "run/report.h"
#include "tensor/device.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// Takes finished modules to the export, the report and the progress line.
class Finisher {
 public:
  Finisher(Exporter& exporter, Report& report, const Plan& plan, bool quiet)
      : exporter_(exporter),
        report_(report),
        progress_("quantizing", static_cast<double>(plan.quantized_weights()), "weights", quiet) {}

  void say(const std::string& what) { progress_.update(done_, what); }

  void operator()(const SolvedModules& modules) {
    at::parallel_for(0, static_cast<int64_t>(modules.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const auto& [planned, result] = modules[static_cast<std::size_t>(i)];
        exporter_.write(*planned, result.matrix, result.input_global);
      }
    });
    for (const auto& [planned, result] : modules) {
      report_.add(*planned, result);
      done_ += static_cast<double>(planned->weights());
      std::string detail = planned->module->name;
      if (result.calibrated) detail += fmt::format("  loss {:.4g}", result.loss);
      progress_.update(done_, detail);
    }
  }

 private:
  Exporter& exporter_;
  Report& report_;
  Progress progress_;
  double done_ = 0;
};

/// The planned modules in turn; those that engines fuse in one part where their format has
/// parameters of a whole matrix, which they are then to share.
std::vector<std::vector<const PlannedModule*>> parts_of(const Plan& plan) {
  std::vector<std::vector<const PlannedModule*>> parts;
  std::map<std::tuple<int32_t, int32_t, int32_t, const Format*>, std::size_t> shared;
  for (const PlannedModule& m : plan.modules) {
    if (!m.format) continue;
    const auto& key = m.module->key;
    const bool alone = m.format->desc().tensor_params == 0 && m.format->desc().group_size != 0;
    if (!alone) {
      const auto [it, added] = shared.try_emplace(
          {key.layer, fused_role(key.role), key.expert, m.format.get()}, parts.size());
      if (!added) {
        parts[it->second].push_back(&m);
        continue;
      }
    }
    parts.push_back({&m});
  }
  return parts;
}

SolvedModules round_part(const Reader& original, const std::vector<const PlannedModule*>& part) {
  std::vector<at::Tensor> weights;
  for (const PlannedModule* m : part)
    weights.push_back(read_tensor(original, m->module->weight,
                                  {m->module->out_features, m->module->in_features}));
  const QuantizedBatch batch =
      quantize_rtn(*part.front()->format, at::cat(weights).unsqueeze(0), {}, {});
  SolvedModules modules;
  int64_t row = 0;
  for (const PlannedModule* m : part) {
    ModuleResult result;
    result.matrix = batch.matrix(0, row, m->module->out_features);
    result.rtn = true;
    row += m->module->out_features;
    modules.emplace_back(m, std::move(result));
  }
  return modules;
}

/// Without a forward pass; as many parts at once as there are threads and memory for.
void round_all(const Reader& original, const Plan& plan, Finisher& finish) {
  constexpr int64_t kMostWeights = int64_t{1} << 28;  // 9 bytes each while they are rounded
  const auto parts = parts_of(plan);
  const auto most = static_cast<std::size_t>(at::get_num_threads());
  for (std::size_t begin = 0, end = 0; begin < parts.size(); begin = end) {
    check_interrupt();
    int64_t weights = 0;
    for (; end < parts.size() && end - begin < most && (end == begin || weights < kMostWeights);
         end++)
      for (const PlannedModule* m : parts[end]) weights += m->weights();
    std::vector<SolvedModules> rounded(end - begin);
    at::parallel_for(0, static_cast<int64_t>(rounded.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        const auto at = static_cast<std::size_t>(i);
        rounded[at] = round_part(original, parts[begin + at]);
      }
    });
    SolvedModules all;
    for (SolvedModules& part : rounded)
      std::move(part.begin(), part.end(), std::back_inserter(all));
    finish(all);
  }
}

/// lm_head, where a recipe names it: its input is the normed output of the last layer.
void quantize_head(const Reader& original, const Model& model, const Plan& plan,
                   const at::Tensor& x, const at::Tensor& original_x, Finisher& finish) {
  for (const PlannedModule& planned : plan.modules) {
    if (!planned.format || planned.module->key.layer >= 0) continue;
    const Module& module = *planned.module;
    if (module.key.role != AQ_ROLE_LM_HEAD)
      fail("{}: only lm_head can be quantized outside the layers", module.name);
    const Norm final_norm(original, model, {-1, AQ_ROLE_FINAL_NORM, AQ_EXPERT_NONE, AQ_PART_WEIGHT},
                          module.in_features);
    Hessian hessian(module.in_features);
    const int64_t originals = original_x.defined() ? original_x.size(0) : 0;
    for (int64_t w = 0; w < x.size(0); w++) {
      const at::Tensor input = final_norm(x[w]);
      hessian.add(input, {});
      if (w < originals)
        hessian.add_shift(input, {}, final_norm(original_x[w]),
                          static_cast<double>(x.size(0)) / static_cast<double>(originals));
    }
    hessian.check_finite(module.name);
    const at::Tensor weight =
        read_tensor(original, module.weight, {module.out_features, module.in_features});
    const QuantizedBatch batch =
        solve_weights(planned, plan.settings, weight.unsqueeze(0), {hessian});
    finish({{&planned,
             {batch.matrix(0, 0, module.out_features), batch.loss.sum().item<double>(),
              batch.rtn_loss.sum().item<double>(), batch.rtn[0], true, hessian.tokens(),
              hessian.weight(), false}}});
  }
}

bool has_head(const Plan& plan) {
  return std::any_of(plan.modules.begin(), plan.modules.end(),
                     [](const PlannedModule& m) { return m.format && m.module->key.layer < 0; });
}

/// The last layer that has something to quantize; what lies behind need not be run.
int32_t last_layer(const Model& model, const Plan& plan) {
  if (has_head(plan)) return model.desc().n_layers - 1;
  int32_t last = -1;
  for (const PlannedModule& m : plan.modules)
    if (m.format) last = std::max(last, m.module->key.layer);
  return last;
}

/// Of how many windows of seqlen tokens the original's hidden states go along.
int64_t original_windows(const Plan& plan, int64_t windows, int64_t seqlen) {
  constexpr int64_t kLeastTokens = 1 << 15;
  if (!plan.needs_calibration()) return 0;
  // the layers round the inputs of whatever runs through them, also of the original
  const bool rounds = std::any_of(plan.modules.begin(), plan.modules.end(),
                                  [](const PlannedModule& m) { return m.activations != nullptr; });
  if (rounds) return 0;
  if (std::any_of(plan.modules.begin(), plan.modules.end(),
                  [](const PlannedModule& m) { return m.refined(); }))
    return windows;  // all are targets
  if (plan.settings.error_feedback == 0) return 0;
  // half tell well enough what quantization does to the inputs, unless they are few
  return std::max((windows + 1) / 2, std::min(windows, (kLeastTokens + seqlen - 1) / seqlen));
}

/// A run's calibration data on its way through the layers.
class Calibrator {
 public:
  Calibrator(const Reader& original, const Model& model, const Plan& plan,
             const at::Tensor& windows, at::ScalarType dtype, const QuantizeOptions& options)
      : original_(original),
        model_(model),
        plan_(plan),
        seq_len_(windows.size(1)),
        options_(at::TensorOptions(options.device).dtype(dtype)),
        seed_(options.calibration->seed) {
    const int64_t n = original_windows(plan, windows.size(0), seq_len_);
    if (options.memory_limit > 0) {
      const int64_t room = room_for_experts(
          memory_need(original, model, plan, windows.numel(), n * seq_len_, dtype,
                      options.device.is_cpu()),
          options.memory_limit,
          options.limit_is_standard ? "what this container's memory limit leaves, in MB,"
                                    : "--memory-limit");
      chunk_bytes_ = options.limit_is_standard ? std::min(room, chunk_bytes_) : room;
    }
    x_ =
        embed_tokens(original, model, windows, at::TensorOptions(options.device).dtype(at::kFloat));
    if (n > 0) original_x_ = x_.narrow(0, 0, n).clone();
  }

  void run(Report& report, Finisher& finish, PhaseTimer& timer) {
    const int32_t last = last_layer(model_, plan_);
    {
      LayerReader reader(options_.device(), last + 1, [this](int32_t layer) {
        // gradients need more digits than bfloat16 has
        const bool wide = refine_of(layer).steps > 0;
        return Layer(original_, model_, layer, seq_len_,
                     wide ? options_.dtype(at::kFloat) : options_);
      });
      for (int32_t l = 0; l <= last; l++) {
        timer.begin("read");
        finish.say(fmt::format("layer {}", l));
        quantize_layer(reader.next(), l, report, finish, timer);
      }
    }
    if (!has_head(plan_)) return;
    timer.begin("calibrate");
    quantize_head(original_, model_, plan_, x_.cpu(),
                  original_x_.defined() ? original_x_.cpu() : original_x_, finish);
  }

 private:
  RefineOptions refine_of(int32_t layer) const { return refine_options(plan_, layer, seed_); }

  void quantize_layer(Layer& layer, int32_t index, Report& report, Finisher& finish,
                      PhaseTimer& timer) {
    const RefineOptions refine = refine_of(index);
    SolvedModules solved;
    const auto take = [&](SolvedModules modules) {
      if (refine.steps > 0)
        std::move(modules.begin(), modules.end(), std::back_inserter(solved));
      else
        finish(modules);
    };
    at::Tensor before = refine.steps > 0 ? x_.clone() : at::Tensor();
    LayerQuantizer quantizer(plan_, index, layer, chunk_bytes_, take, timer);
    quantizer.run(x_, original_x_);
    report.add(quantizer.coverage());
    if (refine.steps == 0) return;
    timer.begin("refine");
    report.add(refine_layer(original_, index, layer, solved, before, original_x_, refine));
    x_ = before;
    finish(solved);
  }

  const Reader& original_;
  const Model& model_;
  const Plan& plan_;
  const int64_t seq_len_;
  const at::TensorOptions options_;
  const uint64_t seed_;
  at::Tensor x_, original_x_;               // [windows, tokens, hidden] f32 before the next layer
  int64_t chunk_bytes_ = int64_t{3} << 29;  // for experts that are solved together
};

}  // namespace

Reader open_original(const std::filesystem::path& directory) {
  Reader reader(directory);
  if (is_quantized(reader.config()))
    fail(
        "{}: is quantized already (config.json has a quantization_config), give the folder of its "
        "original",
        reader.directory());
  return reader;
}

Json quantize(const Reader& original, const Model& model, const Plan& plan,
              const QuantizeOptions& options) {
  const at::ScalarType dtype = compute_type(options.dtype, original, options.device);
  if (plan.needs_calibration() && !options.calibration)
    fail("GPTQ needs calibration text: give --calib FILE, or --algorithm rtn to round to nearest");
  if (plan.observes_inputs() && !options.calibration)
    fail(
        "the recipe rounds activations under one scale for all tokens, which is measured on "
        "calibration text: give --calib FILE");
  std::set<std::string> solved;  // their values are checked when they are read
  for (const PlannedModule& m : plan.modules)
    if (m.format) solved.insert(m.module->weight.name);
  check_finite(original, model, solved);
  PhaseTimer timer;
  timer.begin("prepare");
  Exporter exporter(original, model, plan, options.target, options.max_shard_bytes,
                    options.overwrite);  // first: what it refuses needs no run
  timer.begin("tokenize");
  Calibration calibration;
  if (plan.runs_model())
    calibration = read_calibration(original, model, *options.calibration,
                                   at::TensorOptions(options.device).dtype(dtype));
  const at::Tensor& windows = calibration.windows;
  timer.begin("prepare");
  exporter.write_dense();
  Report report;
  {
    Finisher finish(exporter, report, plan, options.quiet);
    if (windows.defined()) {
      Calibrator(original, model, plan, windows, dtype, options).run(report, finish, timer);
    } else {
      timer.begin("solve");
      round_all(original, plan, finish);
    }
  }
  timer.end();
  Json result = report.finish(plan, model, timer);
  if (windows.defined()) result["calibration"] = calibration.report;
  result["device"] = options.device.str();
  if (!options.device.is_cpu())
    result["totals"]["peak_device_bytes"] = peak_device_bytes(options.device);
  const auto start = std::chrono::steady_clock::now();
  result["totals"]["bytes"] = exporter.finish();
  result["totals"]["seconds"]["write"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  exporter.commit(result);
  return result;
}

}  // namespace aqhost
