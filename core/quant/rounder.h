#pragma once

#include <aq/quantizer.h>

#include <aq/sdk/grid.hpp>
#include <cstdint>
#include <vector>

#include "plugin/format.h"
#include "quant/element.h"

namespace aqhost {

/// A described format of at most 8 bits, fitted and rounded as aq/quantizer.h says, bit for bit
/// what the plugin's callbacks give, but over many rows at once. Any thread.
class Rounder {
 public:
  struct Finalists;  // see rounder.cc

  explicit Rounder(const FormatDesc& desc);
  Rounder(const Rounder&) = delete;
  Rounder& operator=(const Rounder&) = delete;

  float fit_global(const float* weights, int64_t n) const;

  /// Scale and zero of one group of n weights; importance [n] or nullptr.
  aq::GroupParams fit(const float* weights, int64_t n, const float* importance, float global) const;

  /// The scale of a whole matrix [rows, n] that is one group (group_size 0), its rows one after
  /// another; importance [n] or nullptr. Uses all threads; the result is the same for any number.
  aq::GroupParams fit_matrix(const float* weights, int64_t rows, int64_t n,
                             const float* importance) const;

  /// n weights, each of a group of its own: step = scale / global, zero; their codes and what those
  /// stand for.
  void round(int64_t n, const float* weights, const float* step, const float* zero, uint8_t* codes,
             float* values) const;

  /// What n codes stand for, each in a group of its own as above.
  void values(int64_t n, const uint8_t* codes, const float* step, const float* zero,
              float* values) const;

  /// The stored scale nearest to scale > 0.
  float round_scale(float scale) const;

 private:
  aq::GroupParams fit_few(const float* weights, int64_t n, const float* importance,
                          const aq::Extent& extent, float global) const;
  aq::GroupParams fit_many(const float* weights, int64_t n, const float* importance,
                           const aq::Extent& extent, float global) const;
  void add_errors(const float* weights, int64_t n, const float* importance,
                  Finalists& finalists) const;
  aq::GroupParams first_best(const float* weights, int64_t rows, int64_t n, const float* importance,
                             float global, const std::vector<aq::GroupParams>& params) const;
  std::vector<double> errors_of_rows(const float* weights, int64_t rows, int64_t n,
                                     const float* importance,
                                     const std::vector<aq::GroupParams>& params) const;
  void keep_contenders(const float* weights, int64_t n, const float* importance,
                       const aq::Extent& extent, float global,
                       std::vector<aq::GroupParams>& params) const;

  aq_format_desc desc_;  // borrows the vectors of the FormatDesc it was made from
  aq::Grid grid_;
  Element element_;
};

}  // namespace aqhost
