#pragma once

#include <ATen/ATen.h>

#include "plugin/format.h"
#include "quant/batch.h"

namespace aqhost {

/// Whether sweeps change the scales of a format. They do not if only powers of 2 are stored, or if
/// one scale serves all rows of a matrix, because a sweep works on each row by itself.
inline bool refits(const FormatDesc& desc) {
  return desc.scale_kind != AQ_SCALE_E8M0 && desc.group_size != 0;
}

/// Makes passes over a solved batch under H [E, in, in], group by group in the order of the
/// columns. First the scale of the group becomes the storable scale nearest to the least-squares
/// fit of its codes (if refits() is true); two-level scales and minima move together, and d and
/// dmin stay. Then each code in turn becomes the one that lowers 1/2 d
/// H d^T most while all others stay. No change raises that loss. Updates codes, values, params and
/// loss.
void sweep_described(const Format& format, const at::Tensor& weights, const at::Tensor& hessians,
                     int sweeps, QuantizedBatch& batch);

}  // namespace aqhost
