#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

namespace aqhost {

/// H = sum over tokens of s x x^T for one shared input, in float32 (of bfloat16 inputs from
/// bfloat16 factors of x sqrt(s), where the device multiplies them); s is the token's routing
/// weight to the recipe's `routing_power` (MoEQuant, arXiv:2505.03804), 1 for dense inputs. Beside
/// it the shift, sum of s (x0 - x) x^T with x0 the same token's input in the original model: what
/// the quantized layers before have done to the input (see quantize_gptq). One thread adds at a
/// time.
class Hessian {
 public:
  explicit Hessian(int64_t features, at::Device device = at::kCPU)
      : sum_(at::zeros({features, features}, at::TensorOptions(device).dtype(at::kFloat))) {}

  /// x [n, features] of any float type; weights [n] (s of each token, >= 0) or undefined for 1.
  void add(const at::Tensor& x, const at::Tensor& weights);
  /// The shift of tokens that were added, or of some of them, each counted `scale` times; original
  /// like x.
  void add_shift(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& original,
                 double scale);

  /// Error, which names `module`, if a sum is not finite.
  void check_finite(const std::string& module) const;

  int64_t tokens() const { return tokens_; }
  double weight() const { return weight_; }           // sum of s
  const at::Tensor& sum() const { return sum_; }      // [features, features]
  const at::Tensor& shift() const { return shift_; }  // likewise; undefined: never given

  /// What an expert with few tokens is solved with: `own` + w * `all`, with w so that the pair
  /// counts as `min_tokens` tokens of `mean_weight` (the layer's mean s). `all` is of every token
  /// of the layer run through that expert, unweighted. own.tokens() == 0 gives `all` alone. Tokens
  /// and weight stay those of `own`.
  static Hessian mix(const Hessian& own, const Hessian& all, int64_t min_tokens,
                     double mean_weight);

 private:
  at::Tensor sum_, shift_;
  int64_t tokens_ = 0;
  double weight_ = 0;
};

}  // namespace aqhost
