#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.h"
#include "plugin/format.h"

namespace aqhost {

/// The result of quantizing one module, which is all that a layer leaves behind.
struct Solution {
  const PlannedModule* planned = nullptr;
  QuantizedMatrix matrix;
  double loss = 0, rtn_loss = 0;  // see QuantizedBatch
  bool rtn = false;               // whether it was rounded to nearest instead of solved
  bool calibrated = false;        // whether losses, tokens and weight are known
  int64_t tokens = 0;             // the number of tokens in its own Hessian; see `starved`
  double weight = 0;              // the sum of their routing weights to the routing power
  bool starved = false;           // too few tokens: the Hessian of all tokens was mixed in
  float input_global = 1;         // the scale of its rounded input that all tokens share
};

}  // namespace aqhost
