#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "forward/fake_model.h"
#include "quant/formats.h"
#include "run/layer_walk.h"

namespace aqhost {

/// kPlain is attention without RoPE; kWired is the same, computed by the adapter (block-forward).
/// kLatent has low-rank queries, and kLatentQ has none.
enum class AttentionOf { kRope, kPlain, kWired, kLatent, kLatentQ, kDelta, kFusedDelta };

/// A layer of the fake model with experts and gated shared experts, its plan, and the solutions.
struct WalkedLayer {
  explicit WalkedLayer(int32_t experts = 6, AttentionOf attention = AttentionOf::kRope) {
    set_attention(attention);
    fake.ffn.n_experts = experts;
    fake.ffn.shared_size = 12;
    fake.ffn.shared_gated = 1;
    model = fake.open();
    format = int_format(4, {{"group_size", -1}});
    for (const Module& module : model->modules()) {
      PlannedModule planned;
      planned.module = &module;
      plan.modules.push_back(planned);
    }
  }

  /// Plans the modules of `role` in all routed and shared experts.
  void plan_role(int32_t role, const std::string& algorithm, double power) {
    for (PlannedModule& planned : plan.modules) {
      if (planned.module->key.role != role) continue;
      planned.format = format;
      planned.recipe.algorithm = algorithm;
      planned.recipe.routing_power = power;
    }
  }

  /// Lets the planned modules round their inputs to nvfp4.
  void round_inputs(int32_t role) {
    if (!activations) activations = fp4_format("nv", 16);
    for (PlannedModule& planned : plan.modules)
      if (planned.module->key.role == role) planned.activations = activations;
  }

  void run(at::Tensor x, at::Tensor original = {}) {
    const MemorySource source = fake.source();
    layer = std::make_unique<Layer>(source, *model, 0, x.size(1), options);
    LayerWalk walk(
        plan, 0, *layer, chunk_bytes, room, *comm,
        [this](std::vector<Solution> solutions) {
          for (Solution& solution : solutions) {
            const aq_tensor_key& key = solution.planned->module->key;
            results[{key.role, key.expert}] = std::move(solution);
          }
        },
        timer);
    walk.run(x, original, x.clone());
    after = x;
    original_after = original;
    coverage = walk.coverage();
  }

  void set_attention(AttentionOf attention) {
    switch (attention) {
      case AttentionOf::kRope:
        return;
      case AttentionOf::kPlain:
        fake.attention.rope_dim = 0;
        return;
      case AttentionOf::kWired:
        fake.attention.rope_dim = 0;
        return fake.wire_attention();
      case AttentionOf::kLatent:
        return fake.use_latent_attention(16);
      case AttentionOf::kLatentQ:
        return fake.use_latent_attention(0);
      case AttentionOf::kDelta:
        return fake.use_delta_rule(false);
      case AttentionOf::kFusedDelta:
        return fake.use_delta_rule(true);
    }
  }

  FakeModel fake;
  std::unique_ptr<const Model> model;
  std::shared_ptr<const Format> format, activations;
  Plan plan;
  at::TensorOptions options = at::kFloat;  // of the layer
  int64_t chunk_bytes = 1 << 30, room = 0;
  PhaseTimer timer;
  std::unique_ptr<Comm> comm = Comm::alone();
  std::unique_ptr<Layer> layer;
  std::map<std::pair<int32_t, int32_t>, Solution> results;
  std::vector<ExpertCoverage> coverage;
  at::Tensor after, original_after;
};

inline at::Tensor hidden_states(int64_t windows, int64_t tokens, uint64_t seed) {
  return at::randn({windows, tokens, 24}, at::detail::createCPUGenerator(seed));
}

}  // namespace aqhost
