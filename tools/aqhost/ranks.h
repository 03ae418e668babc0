#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

#include "command.h"
#include "run/comm.h"

namespace aqhost {

/// Runs `body` as one of the processes (ranks) that were started together, see
/// world_of_environment(). If there are several, this opens the device that the options name (a GPU
/// of each process's own, unless they give its number) and meets the other ranks before. Only rank
/// 0 shows messages below errors, except that each rank may say which ranks it waits for. `device`
/// is undefined if the process is alone, because the body may find that it needs none. If the body
/// throws, the other ranks are told why; Errors name the rank. The others end as well if this
/// process ends without a word.
void run_as_rank(const DeviceOptions& options,
                 const std::function<void(Comm& comm, std::optional<at::Device> device)>& body);

}  // namespace aqhost
