#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "quant/rounder.h"

namespace aqhost {

/// Rounds activations as engines do while they run: each row (a token) by itself, group by group
/// along its features, scales included. Any thread once the scales are known.
class ActivationRounder {
 public:
  /// `format` was made with {"dynamic": true}. Error if it is one that only its plugin can compute.
  explicit ActivationRounder(std::shared_ptr<const Format> format);

  const Format& format() const { return *format_; }
  /// Whether there is a scale for all tokens, to be observed or set before anything is rounded.
  bool has_global() const { return format_->desc().global_scale; }
  /// Widens that scale to x [N, features]. Not concurrent.
  void observe(const at::Tensor& x);
  bool observed() const { return absmax_ > 0; }
  float global() const;
  void set_global(float global) { global_ = global; }

  /// x [..., features] of any float type, rounded; a new tensor.
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  at::Tensor round_on_gpu(const at::Tensor& x) const;

  std::shared_ptr<const Format> format_;
  Rounder rounder_;
  float absmax_ = 0, global_ = 0;  // 0: that of absmax_
};

}  // namespace aqhost
