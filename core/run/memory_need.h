#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"

namespace aqhost {

/// The bytes that a calibrated run needs at the same time on its device, as precisely as they are
/// known before the run.
struct MemoryNeed {
  int64_t layers = 0;     // hidden states, and the weights of the largest layer (of two on a GPU)
  int64_t solver = 0;     // in addition: the largest group of modules that are solved together,
                          // with as few of its rows at once as possible
  int64_t states = 0;     // outside the layers: hidden states
  int64_t embedding = 0;  // in addition: the embedding, or what solving lm_head takes, with as few
                          // of its rows at once as possible
  int64_t copies = 0;  // of `layers`: a copy of the hidden states before a layer, if it is needed,
                       // and on a GPU one of those that are being written
  int64_t host = 0;    // for a GPU: what the host needs if it holds the hidden states
};

/// Whether a copy of the hidden states before a layer is needed until the layer is finished.
bool keeps_input_of_layers(const Plan& plan);

/// `tokens` are those of all windows, `original_tokens` those of the windows that also run through
/// the original model. `dtype` is the type in which layers compute; layers with refine compute in
/// float32.
MemoryNeed memory_need(const Source& source, const Model& model, const Plan& plan, int64_t tokens,
                       int64_t original_tokens, at::ScalarType dtype, bool on_cpu);

/// The memory need of the same run on its device if it holds its hidden states elsewhere: in files,
/// or on a GPU also in the memory of the host.
MemoryNeed without_states(MemoryNeed need);
/// Whether a run with this need can be done within `limit` bytes.
bool fits(const MemoryNeed& need, int64_t limit);

/// What a run may take, in bytes, to solve modules: beside its hidden states, and in a layer also
/// beside the layer's weights. 0: there is no limit.
struct SolveRoom {
  int64_t layer = 0;  // for the modules of a layer that are solved together
  int64_t head = 0;   // for lm_head
};

/// What a limit leaves; at least what `need` says. Throws an Error that begins with `limit_name` if
/// the limit is less than the run needs.
SolveRoom room_to_solve(const MemoryNeed& need, int64_t limit, const std::string& limit_name);

/// The bytes for solving modules with `rows` rows in all that share an input, `at_once` rows at
/// once (see quantize_gptq): for the Hessian, its damped copy, its factors and the shift; for the
/// weights and their values; and for the targets and gradients of the rows that are solved at once.
int64_t solve_bytes(int64_t features, int64_t rows, int64_t at_once);

/// The rows of such modules that should be solved at once within `room` bytes: 0, which stands for
/// all, if there is room or no limit (`room` is 0); else such that there are as few parts as
/// possible. If the room is too little for any, the least possible number of rows.
int64_t rows_to_solve_at_once(int64_t features, int64_t rows, int64_t room);

}  // namespace aqhost
