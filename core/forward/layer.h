#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "checkpoint/source.h"
#include "forward/attention.h"
#include "forward/custom_attention.h"
#include "forward/linear.h"
#include "forward/norm.h"
#include "forward/routing.h"
#include "plugin/model.h"

namespace aqhost {

/// The weights with which ffn_hidden() multiplies.
struct GluWeights {
  Linear gate, up;

  GluWeights clone() const {
    return {{gate.weight.clone(), gate.bias}, {up.weight.clone(), up.bias}};
  }
};

/// One transformer layer, built from the adapter's description, as a sequence of steps between the
/// inputs of its linear maps. So calibration can stop before each step, quantize the weights that
/// come next, and go on with the new weights:
///
///   t = {attention_input(x)}      input of q, k, v
///   t = attention_advance(0, t)   input of o, unless there are more stages; see Attention
///   x = x + attention_output(t[0])
///   f = ffn_input(x)              input of router, gate, up
///   h = ffn_hidden(expert, f[rows])   input of down
///   y = ffn_output(expert, h)
///
/// Attention that only the adapter knows is a single step, attention(), from a to x. `expert` is 0
/// and up, AQ_EXPERT_NONE (dense FFN) or AQ_EXPERT_SHARED. forward() and ffn() do these steps in a
/// row. What attention_output(), attention() and ffn_output() return is multiplied by the model's
/// residual_scale. Shapes: x, a, t [batch, tokens, features]; f, h, y [N, features]. x may have any
/// float type; all others have the type of the layer, but its routers are always in float32. Const
/// functions are thread-safe. Everything is on one device. `model` must outlive this object.
class Layer {
 public:
  /// Reads the weights of the layer in the type and to the device of `options`. `seq_len` is the
  /// length of the longest sequence that will be run.
  Layer(const Source& source, const Model& model, int32_t layer, int64_t seq_len,
        const at::TensorOptions& options = at::kFloat);

  at::Tensor attention_input(const at::Tensor& x) const;
  /// The stages of attention that is described; see Attention.
  const std::vector<Attention::Stage>& attention_stages() const { return attention_->stages(); }
  /// Turns the tensors of a stage that is not the last into those of the next one.
  Attention::Tensors attention_advance(std::size_t stage, Attention::Tensors tensors) const;
  at::Tensor attention_output(const at::Tensor& context) const;
  /// Turns a into what is added to x. `tap` receives the inputs of a custom attention's linear
  /// maps.
  at::Tensor attention(const at::Tensor& a, const LinearTap& tap = nullptr) const;
  /// Whether the adapter computes attention itself (AQ_ATTN_CUSTOM). Then attention_stages(),
  /// attention_advance() and attention_output() must not be called.
  bool has_custom_attention() const { return custom_.has_value(); }
  at::Tensor ffn_input(const at::Tensor& x) const;

  /// Only for MoE layers.
  Routing route(const at::Tensor& f) const;
  /// The sigmoid gate of the shared experts, [N, 1]; undefined if they have none.
  at::Tensor shared_weight(const at::Tensor& f) const;

  at::Tensor ffn_hidden(int32_t expert, const at::Tensor& f) const;
  at::Tensor ffn_hidden(const GluWeights& weights, const at::Tensor& f) const;
  GluWeights glu_weights(int32_t expert) const;  // borrowed from this layer
  at::Tensor ffn_output(int32_t expert, const at::Tensor& h) const;

  /// Turns f [N, hidden] into the sum of all experts' weighted outputs, [N, hidden]. In an MoE
  /// layer, `routing` receives route(f), unless it is null.
  at::Tensor ffn(const at::Tensor& f, Routing* routing = nullptr) const;
  /// Runs the whole layer on x [batch, tokens, hidden].
  at::Tensor forward(const at::Tensor& x, Routing* routing = nullptr) const;

  /// weight() is the weight [out, in] that is in use for a module of this layer. It is a view;
  /// experts of one role lie behind one another in a tensor [n_experts, out, in]. set_weight()
  /// copies another weight into its place.
  at::Tensor weight(const Module& module) const;
  void set_weight(const Module& module, const at::Tensor& weight);
  /// Uses the tensor itself, with its gradient graph, in place of the current weight.
  void use_weight(const Module& module, const at::Tensor& weight);

  /// set_input_rounding() makes a module round its input; rounded_input() is the result for an
  /// input (x itself if no rounding was set).
  void set_input_rounding(const Module& module, std::function<at::Tensor(const at::Tensor&)> round);
  at::Tensor rounded_input(const Module& module, const at::Tensor& x) const;

  /// From now on, `see` is called with the output of a module whenever it is applied, before any
  /// operation changes the output in place; possibly from several threads, unless gradients are on.
  void see_output(const Module& module, std::function<void(const at::Tensor&)> see);

  const at::TensorOptions& options() const { return options_; }
  const FfnDesc& ffn_desc() const { return model_.ffn(index_); }

 private:
  const Linear& linear(int32_t role, int32_t expert = AQ_EXPERT_NONE) const;
  void read_linears(const Source& source);
  void read_router_bias(const Source& source);
  at::Tensor scaled(at::Tensor output) const;

  const Model& model_;
  int32_t index_;
  at::TensorOptions options_;
  Norm attention_norm_, ffn_norm_;
  std::unique_ptr<Attention> attention_;  // either this or custom_
  std::optional<CustomAttention> custom_;
  std::map<int32_t, at::Tensor> experts_;                  // role -> [n_experts, out, in]
  std::map<std::pair<int32_t, int32_t>, Linear> linears_;  // (role, expert)
  at::Tensor router_bias_;                                 // [n_experts] or undefined
};

}  // namespace aqhost
