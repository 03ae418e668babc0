#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace aqhost {

/// H = sum over tokens of s x x^T for one shared input, in float32; s is the token's routing weight
/// to the recipe's `routing_power` (MoEQuant, arXiv:2505.03804), 1 for dense inputs. One thread
/// adds at a time.
class Hessian {
 public:
  explicit Hessian(int64_t features) : sum_(at::zeros({features, features}, at::kFloat)) {}

  /// x [n, features]; weights [n] (s of each token, >= 0) or undefined for 1.
  void add(const at::Tensor& x, const at::Tensor& weights);

  int64_t tokens() const { return tokens_; }
  double weight() const { return weight_; }       // sum of s
  const at::Tensor& sum() const { return sum_; }  // [features, features]

 private:
  at::Tensor sum_;
  int64_t tokens_ = 0;
  double weight_ = 0;
};

/// What an expert with few tokens is solved with: own + w * all, with w so that the pair counts as
/// `min_tokens` tokens of `mean_weight` (the layer's mean s). `all` is the Hessian of every token
/// of the layer run through that expert, unweighted. own.tokens() == 0 gives `all` alone.
at::Tensor mix_starved(const Hessian& own, const Hessian& all, int64_t min_tokens,
                       double mean_weight);

}  // namespace aqhost
