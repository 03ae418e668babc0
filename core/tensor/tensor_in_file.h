#pragma once

#include <ATen/ATen.h>

#include <filesystem>

namespace aqhost {

/// Makes a float32 tensor on the CPU, all 0, whose memory is a file: the operating system writes
/// its pages to the disk when it needs their memory for something else. The room on the disk is
/// reserved here. The file has no name, and is gone when the last view of the tensor is, or when
/// the program ends, however it ends. (While it is made, its name is `path` and some more
/// characters.) Throws an Error that begins with the path. If the disk fails later, the program
/// ends with SIGBUS.
at::Tensor tensor_in_file(const std::filesystem::path& path, at::IntArrayRef shape);

}  // namespace aqhost
