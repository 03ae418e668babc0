#include "pipeline/quantize.h"

#include <spdlog/spdlog.h>

#include <map>
#include <tuple>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "forward/compute_type.h"
#include "forward/decoder.h"
#include "forward/layer.h"
#include "pipeline/coverage.h"
#include "pipeline/exporter.h"
#include "pipeline/layer_quantizer.h"
#include "pipeline/refine.h"
#include "pipeline/report.h"
#include "quant/gptq.h"
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

  void operator()(const PlannedModule& planned, ModuleResult result) {
    exporter_.write(planned, result.matrix, result.input_global);
    report_.add(planned, result);
    done_ += static_cast<double>(planned.weights());
    std::string detail = planned.module->name;
    if (result.calibrated) detail += fmt::format("  loss {:.4g}", result.loss);
    progress_.update(done_, detail);
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

/// Part by part, without a forward pass.
void round_all(const Reader& original, const Plan& plan, Finisher& finish) {
  for (const auto& part : parts_of(plan)) {
    check_interrupt();
    std::vector<at::Tensor> weights;
    for (const PlannedModule* m : part)
      weights.push_back(read_tensor(original, m->module->weight,
                                    {m->module->out_features, m->module->in_features}));
    const QuantizedBatch batch =
        quantize_rtn(*part.front()->format, at::cat(weights).unsqueeze(0), {}, {});
    int64_t row = 0;
    for (const PlannedModule* m : part) {
      ModuleResult result;
      result.matrix = batch.matrix(0, row, m->module->out_features);
      result.rtn = true;
      row += m->module->out_features;
      finish(*m, std::move(result));
    }
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
    const Ends ends(original, model);
    Hessian hessian(module.in_features);
    const int64_t originals = original_x.defined() ? original_x.size(0) : 0;
    for (int64_t w = 0; w < x.size(0); w++) {
      const at::Tensor input = ends.final_norm(x[w]);
      hessian.add(input, {});
      if (w < originals)
        hessian.add_shift(input, {}, ends.final_norm(original_x[w]),
                          static_cast<double>(x.size(0)) / static_cast<double>(originals));
    }
    const at::Tensor weight =
        read_tensor(original, module.weight, {module.out_features, module.in_features});
    const QuantizedBatch batch =
        solve_weights(planned, plan.settings, weight.unsqueeze(0), {hessian});
    finish(planned, {batch.matrix(0, 0, module.out_features), batch.loss.sum().item<double>(),
                     batch.rtn_loss.sum().item<double>(), batch.rtn[0], true, hessian.tokens(),
                     hessian.weight(), false});
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

/// Of how many windows the original's hidden states go along.
int64_t original_windows(const Plan& plan, int64_t windows) {
  if (!plan.needs_calibration()) return 0;
  // the layers round the inputs of whatever runs through them, also of the original
  const bool rounds = std::any_of(plan.modules.begin(), plan.modules.end(),
                                  [](const PlannedModule& m) { return m.activations != nullptr; });
  if (rounds) return 0;
  if (std::any_of(plan.modules.begin(), plan.modules.end(),
                  [](const PlannedModule& m) { return m.format && m.recipe.refine_steps > 0; }))
    return windows;  // all are targets
  // half tell well enough what quantization does to the inputs
  return plan.settings.error_feedback > 0 ? (windows + 1) / 2 : 0;
}

/// Takes x and original_x through one layer.
void quantize_layer(const Reader& original, const Plan& plan, Layer& layer, int32_t index,
                    uint64_t seed, at::Tensor& x, at::Tensor& original_x, Report& report,
                    Finisher& finish, PhaseTimer& timer) {
  const RefineOptions refine = refine_options(plan, index, seed);
  SolvedModules solved;
  const auto take = [&](const PlannedModule& module, ModuleResult result) {
    if (refine.steps > 0)
      solved.emplace_back(&module, std::move(result));
    else
      finish(module, std::move(result));
  };
  at::Tensor before = refine.steps > 0 ? x.clone() : at::Tensor();
  LayerQuantizer quantizer(plan, index, layer, take, timer);
  quantizer.run(x, original_x);
  report.add(quantizer.coverage());
  if (refine.steps == 0) return;
  timer.begin("refine");
  report.add(refine_layer(original, index, layer, solved, before, original_x, refine));
  x = before;
  for (auto& [module, result] : solved) finish(*module, std::move(result));
}

void calibrate_and_solve(const Reader& original, const Model& model, const Plan& plan,
                         const at::Tensor& windows, at::ScalarType dtype, uint64_t seed,
                         Report& report, Finisher& finish, PhaseTimer& timer) {
  at::Tensor x = Ends(original, model).embed(windows), original_x;
  if (const int64_t n = original_windows(plan, x.size(0)); n > 0)
    original_x = x.narrow(0, 0, n).clone();
  for (int32_t l = 0; l <= last_layer(model, plan); l++) {
    timer.begin("read");
    finish.say(fmt::format("layer {}", l));
    // gradients need more digits than bfloat16 has
    const bool refined = refine_options(plan, l, seed).steps > 0;
    Layer layer(original, model, l, windows.size(1), refined ? at::kFloat : dtype);
    quantize_layer(original, plan, layer, l, seed, x, original_x, report, finish, timer);
  }
  timer.begin("calibrate");
  quantize_head(original, model, plan, x, original_x, finish);
}

}  // namespace

Reader open_original(const std::filesystem::path& directory) {
  Reader reader(directory);
  if (reader.config().contains("quantization_config"))
    fail(
        "{}: is quantized already (config.json has a quantization_config), give the folder of its "
        "original",
        reader.directory());
  return reader;
}

Json quantize(const Reader& original, const Model& model, const Plan& plan,
              const QuantizeOptions& options) {
  const at::ScalarType dtype = compute_type(options.dtype, original);
  if (plan.needs_calibration() && !options.calibration)
    fail("GPTQ needs calibration text: give --calib FILE, or --algorithm rtn to round to nearest");
  for (const PlannedModule& m : plan.modules)
    if (m.activations && m.recipe.refine_steps > 0)
      fail("{}: refine does not go with aq: {}, use aq: bf16 or refine: {{steps: 0}}",
           m.module->name, m.recipe.aq);
  if (plan.observes_inputs() && !options.calibration)
    fail(
        "the recipe rounds activations under one scale for all tokens, which is measured on "
        "calibration text: give --calib FILE");
  PhaseTimer timer;
  timer.begin("tokenize");
  Calibration calibration;
  if (options.calibration)
    calibration = read_calibration(original, model, *options.calibration, dtype);
  const at::Tensor& windows = calibration.windows;
  timer.begin("prepare");
  Exporter exporter(original, model, plan, options.target, options.max_shard_bytes,
                    options.overwrite);
  Report report;
  {
    Finisher finish(exporter, report, plan, options.quiet);
    if (windows.defined()) {
      calibrate_and_solve(original, model, plan, windows, dtype, options.calibration->seed, report,
                          finish, timer);
    } else {
      timer.begin("solve");
      round_all(original, plan, finish);
    }
  }
  timer.end();
  Json result = report.finish(plan, model, timer);
  if (windows.defined()) result["calibration"] = calibration.report;
  if (const std::string told = starved_warning(result); !told.empty()) spdlog::warn("{}", told);
  const auto start = std::chrono::steady_clock::now();
  result["totals"]["bytes"] = exporter.commit(result);
  result["totals"]["seconds"]["write"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace aqhost
