#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace aqhost {

/// H = sum over tokens of s x x^T for one shared input, in float32. For bfloat16 inputs, the
/// factors x sqrt(s) are bfloat16 if the device can multiply these. s is the token's routing weight
/// to the power `routing_power` of the recipe (MoEQuant, arXiv:2505.03804), and 1 for dense inputs.
/// Also holds the shift, the sum of s (x0 - x) x^T with x0 the input of the same token in the
/// original model: it shows how the quantized earlier layers have changed the input (see
/// quantize_gptq). Only one thread may add at a time.
class Hessian {
 public:
  explicit Hessian(int64_t features, at::Device device = at::kCPU)
      : sum_(at::zeros({features, features}, at::TensorOptions(device).dtype(at::kFloat))),
        weight_(at::zeros({}, at::TensorOptions(device).dtype(at::kDouble))) {}
  /// Of sums that are known: see the functions of these names. It shares the tensors' memory.
  Hessian(at::Tensor sum, at::Tensor shift, int64_t tokens, double weight)
      : sum_(std::move(sum)),
        shift_(std::move(shift)),
        tokens_(tokens),
        weight_(at::scalar_tensor(weight, at::kDouble)) {}

  /// x is [n, features] of any float type; weights is [n] (s of each token, >= 0), or undefined for
  /// 1.
  void add(const at::Tensor& x, const at::Tensor& weights);
  /// Adds to the shift for tokens that were added, or for some of them, each counted `scale` times.
  /// `original` has the shape and type of x.
  void add_shift(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& original,
                 double scale);

  int64_t tokens() const { return tokens_; }
  double weight() const { return weight_.item<double>(); }  // sum of s; waits for the device
  /// weight() of several, which are on one device; waits for it only once.
  static std::vector<double> weights_of(const std::vector<Hessian>& hessians);
  const at::Tensor& sum() const { return sum_; }      // [features, features]
  const at::Tensor& shift() const { return shift_; }  // likewise; undefined: nothing was added

  /// Frees the sums, unless another Hessian shares them. tokens() and weight() stay.
  void release_sums() {
    sum_.reset();
    shift_.reset();
  }

  /// The Hessian for an expert with few tokens: `own` + `share` * `all`, where `all` comes from
  /// every token of the layer, run through that expert without weights. tokens() and weight() stay
  /// those of `own`.
  static Hessian mix(const Hessian& own, const Hessian& all, double share);
  /// The share with which the result of mix() counts as `min_tokens` tokens of weight `mean_weight`
  /// (the layer's mean of s), if `own` has `own_tokens` and `all` has `all_tokens`. It is 1 if one
  /// of these is 0.
  static double share_of_all(int64_t own_tokens, int64_t all_tokens, int64_t min_tokens,
                             double mean_weight);

 private:
  at::Tensor sum_, shift_;
  int64_t tokens_ = 0;
  at::Tensor weight_;  // [] f64
};

}  // namespace aqhost
