#pragma once

#include <aq/quantizer.h>

#include <aq/sdk/grid.hpp>
#include <cstdint>
#include <vector>

#include "plugin/format.h"
#include "quant/element.h"

namespace aqhost {

/// Fits and rounds to a described format of at most 8 bits as aq/quantizer.h defines it. The
/// results equal those of the plugin's callbacks bit for bit, but many weights are processed at
/// once. Thread-safe.
class Rounder {
 public:
  struct Finalists;  // see rounder.cc

  /// Memory that fit() uses again from group to group. Each thread needs its own.
  struct Scratch {
    std::vector<float> ones, weights, importance, guesses;
    std::vector<double> errors;
    std::vector<aq::GroupParams> params;
  };

  /// Borrows `desc`.
  explicit Rounder(const aq_format_desc& desc);
  Rounder(const Rounder&) = delete;
  Rounder& operator=(const Rounder&) = delete;

  float fit_global(const float* weights, int64_t n) const;

  /// The scale and zero point of one group of n weights. `importance` is [n] or nullptr.
  aq::GroupParams fit(const float* weights, int64_t n, const float* importance, float global,
                      Scratch& scratch) const;

  /// The scale of a whole matrix [rows, n] that is one group (group_size 0); the rows follow one
  /// another. `importance` is [n] or nullptr. Uses all threads; the result does not depend on their
  /// number.
  aq::GroupParams fit_matrix(const float* weights, int64_t rows, int64_t n,
                             const float* importance) const;

  /// The parameters of the groups of one super-group, and scale and minimum of one of its groups,
  /// as TwoLevelFit finds them; `params` are those of the description.
  void fit_two_level(const float* weights, int64_t n, const float* importance, float* params) const;
  void refit_two_level(const float* weights, int64_t n, const float* importance,
                       float* params) const;

  /// Rounds n weights. Each has a step (scale / global) and a zero (point, or minimum) of its own.
  /// Gives their codes and the values of these.
  void round(int64_t n, const float* weights, const float* step, const float* zero, uint8_t* codes,
             float* values) const;

  /// The values of n codes, each with a step and a zero of its own as above.
  void values(int64_t n, const uint8_t* codes, const float* step, const float* zero,
              float* values) const;

  /// The scale that can be stored and is nearest to `scale` > 0.
  float round_scale(float scale) const;

 private:
  aq::GroupParams fit_few(const float* weights, int64_t n, const float* importance,
                          const aq::Extent& extent, float global, Scratch& scratch) const;
  aq::GroupParams fit_many(const float* weights, int64_t n, const float* importance,
                           const aq::Extent& extent, float global, Scratch& scratch) const;
  void add_errors(const float* weights, int64_t n, const float* importance,
                  Finalists& finalists) const;
  aq::GroupParams first_best(const float* weights, int64_t rows, int64_t n, const float* importance,
                             float global, const std::vector<aq::GroupParams>& params) const;
  std::vector<double> errors_of_rows(const float* weights, int64_t rows, int64_t n,
                                     const float* importance,
                                     const std::vector<aq::GroupParams>& params) const;
  void keep_contenders(const float* weights, int64_t n, const float* importance,
                       const aq::Extent& extent, float global, Scratch& scratch) const;

  const aq_format_desc& desc_;
  aq::Grid grid_;
  Element element_;
};

}  // namespace aqhost
