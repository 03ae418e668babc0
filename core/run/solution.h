#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.h"
#include "plugin/format.h"

namespace aqhost {

/// How one module came out: the only thing that leaves a layer.
struct Solution {
  const PlannedModule* planned = nullptr;
  QuantizedMatrix matrix;
  double loss = 0, rtn_loss = 0;  // see QuantizedBatch
  bool rtn = false;               // it was rounded to nearest instead of solved
  bool calibrated = false;        // the losses, tokens and weight mean something
  int64_t tokens = 0;             // that its Hessian was made of (its own; see `starved`)
  double weight = 0;              // the sum of their routing weights to the routing power
  bool starved = false;           // too few tokens: the Hessian of all tokens was mixed in
  float input_global = 1;         // the scale for all tokens of its rounded input
};

}  // namespace aqhost
