#pragma once

// LibTorch's wheel exports ProcessGroupGloo and contains Gloo, but its header
// torch/csrc/distributed/c10d/ProcessGroupGloo.hpp includes headers of Gloo that the wheel lacks.
// The files in this folder stand for them. They declare what that header mentions, as Gloo
// (https://github.com/pytorch/incubator-gloo) does, and nothing else: the project only passes
// pointers to these types from LibTorch to LibTorch. All definitions are in libtorch_cpu.so.

#include <chrono>

#include "gloo/transport/unbound_buffer.h"

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
