#include "run/refine.h"

#include <c10/core/GradMode.h>

#include <random>

#include "base/interrupt.h"
#include "calibrate/windows.h"
#include "forward/batches.h"
#include "quant/cells.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// A module whose codes are being chosen.
struct Refined {
  const PlannedModule* planned;
  Solution* solution;
  at::Tensor own_weight;  // the layer's own tensor, which it uses again in the end
  Cells cells;
};

bool is_refined(const PlannedModule& m) { return m.refined() && Cells::possible(m.format->desc()); }

/// Calls body(begin, output) with the layer's output for every batch of x.
template <typename Body>
void run_layer(const Layer& layer, const at::Tensor& x, Body body) {
  for_window_batches(x, [&](int64_t begin, int64_t count) {
    body(begin, layer.forward(x.narrow(0, begin, count)));
  });
}

double output_error(const Layer& layer, const at::Tensor& x, const at::Tensor& target) {
  double sum = 0;
  run_layer(layer, x, [&](int64_t begin, const at::Tensor& out) {
    const at::Tensor d = out - target.narrow(0, begin, out.size(0));
    sum += d.square().sum(at::kDouble).item<double>();
  });
  return sum / static_cast<double>(x.numel());
}

/// Moves the weights in their cells. A module whose output does not depend on the windows of a
/// step, such as an expert without tokens, does not change in that step.
void run_steps(Layer& layer, std::vector<Refined>& refined, const at::Tensor& x,
               const at::Tensor& target, const RefineOptions& options) {
  const c10::AutoGradMode gradients(true);  // the program has switched them off
  std::mt19937_64 random(options.seed);
  for (int64_t step = 0; step < options.steps; step++) {
    check_interrupt();
    std::vector<at::Tensor> weights;
    for (Refined& m : refined) {
      weights.push_back(m.cells.weights().requires_grad_());
      layer.use_weight(*m.planned->module, weights.back());
    }
    const at::Tensor windows =
        at::tensor(sample(x.size(0), options.batch, random), at::kLong).to(x.device());
    const at::Tensor out = layer.forward(x.index_select(0, windows));
    if (!out.requires_grad()) continue;  // it depends on none of the modules
    (out - target.index_select(0, windows)).square().mean().backward();
    const double size = (1 - static_cast<double>(step) / static_cast<double>(options.steps)) /
                        static_cast<double>(options.steps);
    for (std::size_t i = 0; i < refined.size(); i++)
      if (weights[i].grad().defined()) refined[i].cells.move(weights[i].grad(), size);
  }
}

}  // namespace

RefineOptions refine_options(const Plan& plan, int32_t layer, uint64_t seed) {
  RefineOptions options;
  options.seed = seed + static_cast<uint64_t>(layer);
  for (const PlannedModule& m : plan.modules) {
    if (m.module->key.layer != layer || !is_refined(m) || m.recipe.refine_steps <= options.steps)
      continue;
    options.steps = m.recipe.refine_steps;
    options.batch = m.recipe.refine_batch;
  }
  return options;
}

Refinement refine_layer(const Source& source, int32_t index, Layer& layer,
                        std::vector<Solution>& solutions, at::Tensor& x, const at::Tensor& target,
                        const RefineOptions& options) {
  Refinement refinement{index, output_error(layer, x, target), 0};
  std::vector<Refined> refined;
  for (Solution& solution : solutions) {
    if (!is_refined(*solution.planned) || solution.rtn) continue;
    const Module& module = *solution.planned->module;
    const at::Tensor original =
        read_tensor(source, module.weight, {module.out_features, module.in_features});
    refined.push_back(
        {solution.planned, &solution, layer.weight(module),
         Cells(solution.planned->format->desc(), original, solution.matrix, x.device())});
  }
  run_steps(layer, refined, x, target, options);

  std::vector<at::Tensor> before;
  for (Refined& m : refined) {
    before.push_back(m.own_weight.clone());
    layer.use_weight(*m.planned->module, m.own_weight);
    QuantizedMatrix matrix = m.solution->matrix;
    m.cells.store(matrix);
    m.own_weight.copy_(at::tensor(m.planned->format->dequantize(matrix)).view_as(m.own_weight));
  }
  refinement.error_after = output_error(layer, x, target);
  const bool better = refinement.error_after < refinement.error_before;
  for (std::size_t i = 0; i < refined.size(); i++) {
    if (better)
      refined[i].cells.store(refined[i].solution->matrix);
    else
      refined[i].own_weight.copy_(before[i]);
  }
  if (!better) refinement.error_after = refinement.error_before;
  run_layer(layer, x, [&](int64_t begin, const at::Tensor& out) {
    x.narrow(0, begin, out.size(0)).copy_(out);
  });
  return refinement;
}

}  // namespace aqhost
