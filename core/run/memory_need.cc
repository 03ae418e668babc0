#include "run/memory_need.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "base/error.h"
#include "quant/products.h"
#include "quant/tile.h"

namespace aqhost {
namespace {

/// The number of weights in the modules of the largest layer.
int64_t largest_layer(const Model& model) {
  std::map<int32_t, int64_t> elements;
  for (const Module& m : model.modules())
    if (m.key.layer >= 0) elements[m.key.layer] += m.out_features * m.in_features;
  int64_t maximum = 0;
  for (const auto& [layer, size] : elements) maximum = std::max(maximum, size);
  return maximum;
}

/// The bytes of the embedding as embed_tokens() reads it.
int64_t embedding_bytes(const Source& source, const Model& model) {
  const auto ref = model.find_ref({-1, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, AQ_PART_WEIGHT});
  const TensorInfo* table = ref ? source.find(ref->name) : nullptr;
  const int64_t element = table != nullptr && table->dtype == DType::kBF16 ? 2 : 4;
  return element * model.desc().hidden_size * model.desc().vocab_size;
}

/// The maximum of hidden_size and what attention keeps of a token between its stages: the features
/// of the inputs of all linear maps behind the first stage, and in latent attention also what the
/// first stage gives.
int64_t widest_context(const Model& model) {
  std::map<int32_t, int64_t> kept;  // by layer
  for (const Module& m : model.modules()) {
    const int32_t role = m.key.role;
    if (role == AQ_ROLE_ATTN_O || role == AQ_ROLE_ATTN_Q_B || role == AQ_ROLE_ATTN_KV_B ||
        role == AQ_ROLE_DELTA_OUT)
      kept[m.key.layer] += m.in_features;
    const aq_tensor_key latent{m.key.layer, AQ_ROLE_ATTN_KV_A, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
    if (role == AQ_ROLE_ATTN_KV_A ||
        (role == AQ_ROLE_ATTN_Q && model.find_module(latent) != nullptr))
      kept[m.key.layer] += m.out_features;
  }
  int64_t widest = model.desc().hidden_size;
  for (const auto& [layer, features] : kept) widest = std::max(widest, features);
  return widest;
}

bool has_refined(const Plan& plan) {
  return std::any_of(plan.modules.begin(), plan.modules.end(),
                     [](const PlannedModule& m) { return m.format && m.recipe.refine_steps > 0; });
}

constexpr int64_t kLeastAtOnce = kProductRows + kRows - 1;  // see quantize_gptq()

/// The bytes for solving the largest group of planned modules that share an input, with as few rows
/// at once as possible: of those in layers, or if `head` of those outside.
int64_t largest_solve(const Plan& plan, bool head) {
  std::map<std::tuple<int32_t, int32_t, int32_t>, std::pair<int64_t, int64_t>> groups;
  for (const PlannedModule& m : plan.modules) {
    const aq_tensor_key& key = m.module->key;
    if (!m.format || (key.layer < 0) != head) continue;
    auto& [features, rows] = groups[{key.layer, key.expert, input_role(key.role)}];
    features = std::max(features, m.module->in_features);
    rows += m.module->out_features;
  }
  int64_t maximum = 0;
  for (const auto& [key, group] : groups)
    maximum = std::max(
        maximum, solve_bytes(group.first, group.second, std::min(group.second, kLeastAtOnce)));
  return maximum;
}

}  // namespace

bool keeps_input_of_layers(const Plan& plan) {
  return has_refined(plan) || !plan.settings.sequential;
}

MemoryNeed memory_need(const Source& source, const Model& model, const Plan& plan, int64_t tokens,
                       int64_t original_tokens, at::ScalarType dtype, bool on_cpu) {
  const int64_t hidden = model.desc().hidden_size;
  const bool refined = has_refined(plan);
  const auto element = static_cast<int64_t>(at::elementSize(refined ? at::kFloat : dtype));
  const int64_t states = 4 * hidden * (tokens + original_tokens);
  // attention's contexts and the FFN's inputs are not in memory at the same time
  const int64_t inputs = element * widest_context(model) * (tokens + original_tokens);
  // learned rounding has copies of the weights, gradients and cells, all in float32
  const int64_t layers = (on_cpu ? 1 : 2) + (refined ? 9 : 0);
  const int64_t layer = element * largest_layer(model);
  const int64_t kept = keeps_input_of_layers(plan) ? 4 * hidden * tokens : 0;
  MemoryNeed need;
  need.copies = kept + (on_cpu ? 0 : states);
  need.layers = states + inputs + need.copies + layers * layer;
  need.solver = largest_solve(plan, false);
  // lm_head is solved on the CPU
  const int64_t table = embedding_bytes(source, model), head = largest_solve(plan, true);
  need.states = states;
  need.embedding = std::max(table, on_cpu ? head : 0);
  // a layer's weights may pass through the host, and the embedding is read where the states are
  if (!on_cpu) need.host = states + std::max({kept + layer, table, head});
  return need;
}

MemoryNeed without_states(MemoryNeed need) {
  need.layers -= need.states + need.copies;
  need.states = need.copies = 0;
  return need;
}

bool fits(const MemoryNeed& need, int64_t limit) {
  return need.layers < limit && need.layers + need.solver <= limit &&
         need.states + need.embedding <= limit;
}

SolveRoom room_to_solve(const MemoryNeed& need, int64_t limit, const std::string& limit_name) {
  if (fits(need, limit)) return {limit - need.layers, limit - need.states};
  // the number is one that suffices
  const int64_t in_layers = need.layers + std::max(need.solver, int64_t{1});
  const int64_t outside = need.states + need.embedding;
  const char* states = need.states > 0 ? "hidden states, " : "";
  const char* what =
      in_layers >= outside
          ? "layer weights, the inputs of modules and the modules that are solved at once"
          : "the weights of the embedding or of lm_head";
  fail("{} {}: {}{} take {} MB; fewer --nsamples or a shorter --seqlen need less", limit_name,
       limit / 1'000'000, states, what, (std::max(in_layers, outside) + 999'999) / 1'000'000);
}

int64_t solve_bytes(int64_t features, int64_t rows, int64_t at_once) {
  return 28 * features * features + 20 * features * rows + 40 * features * at_once;
}

int64_t rows_to_solve_at_once(int64_t features, int64_t rows, int64_t room) {
  if (room == 0 || solve_bytes(features, rows, rows) <= room) return 0;
  // the last part has up to kRows - 1 rows more than the others
  const int64_t fit = (room - solve_bytes(features, rows, kRows - 1)) / (40 * features);
  const int64_t most = std::max(fit / kProductRows, int64_t{1}) * kProductRows;
  const int64_t parts = (rows + most - 1) / most;
  return ((rows + parts - 1) / parts + kProductRows - 1) / kProductRows * kProductRows;
}

}  // namespace aqhost
