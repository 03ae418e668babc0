#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "quant/rounder.h"

namespace aqhost {

/// Rounds activations as engines do at run time: each row (one token) by itself, group by group
/// along its features, including the scales. Thread-safe once the global scale is known.
class ActivationRounder {
 public:
  /// `format` must have been made with {"dynamic": true}. Throws an Error if only its plugin can
  /// compute it.
  explicit ActivationRounder(std::shared_ptr<const Format> format);

  const Format& format() const { return *format_; }
  /// Whether there is a global scale for all tokens, which must be observed or set before anything
  /// is rounded.
  bool has_global() const { return format_->desc().global_scale(); }
  /// Widens the range of that scale to include x [N, features]. Not thread-safe.
  void observe(const at::Tensor& x);
  bool observed() const { return absmax_ > 0; }
  /// The maximum absolute value that was observed; widen() takes part of another rounder's.
  float absmax() const { return absmax_; }
  void widen(float absmax) { absmax_ = std::max(absmax_, absmax); }
  float global() const;
  void set_global(float global) { global_ = global; }

  /// Returns a new tensor with x [..., features], of any float type, rounded.
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  at::Tensor round_on_gpu(const at::Tensor& x) const;

  std::shared_ptr<const Format> format_;
  Rounder rounder_;
  float absmax_ = 0, global_ = 0;  // global_ = 0: computed from absmax_
};

}  // namespace aqhost
