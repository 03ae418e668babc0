#pragma once

// doctest and c10 both define CHECK; ours is doctest's.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#undef CHECK

#include <doctest/doctest.h>

#undef CHECK
#define CHECK(...) DOCTEST_CHECK(__VA_ARGS__)

/// |a - b| / |b| in float64.
inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  return ((a.to(at::kDouble) - b).norm() / b.norm()).item<double>();
}

/// LibTorch's own generator starts anywhere; a test draws the same numbers every time.
inline const bool kSeeded =
    (at::Generator(at::detail::getDefaultCPUGenerator()).set_current_seed(1), true);
