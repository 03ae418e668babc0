#pragma once

#include <doctest/doctest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/dequantized_source.h"
#include "stored_file.h"
#include "temp_folder.h"

namespace aqhost {

using std::string_literals::operator""s;

/// A checkpoint in memory that a test damages before it is written and opened.
struct StoredParts {
  Json config;
  std::map<std::string, std::pair<TensorInfo, std::string>> tensors;

  /// Adds a tensor, or replaces it.
  void add(const std::string& name, DType dtype, std::vector<int64_t> shape, std::string bytes) {
    tensors[name] = {{name, dtype, std::move(shape)}, std::move(bytes)};
  }
  void add_f32(const std::string& name, std::vector<int64_t> shape,
               const std::vector<float>& values) {
    add(name, DType::kF32, std::move(shape),
        {reinterpret_cast<const char*>(values.data()), 4 * values.size()});
  }

  /// The content of model.safetensors.
  std::string file() const {
    Json header = Json::object();
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const auto& [info, bytes] = tensor;
      header[name] = {{"dtype", dtype_name(info.dtype)},
                      {"shape", info.shape},
                      {"data_offsets", {data.size(), data.size() + bytes.size()}}};
      data += bytes;
    }
    return stored_file(header.dump(), data);
  }
};

inline std::unique_ptr<Source> open_parts(const StoredParts& parts) {
  const TempFolder folder;  // the open file is read even if its name is gone
  write_file(folder / "config.json", parts.config.dump());
  write_file(folder / "model.safetensors", parts.file());
  return open_checkpoint(folder.path());
}

/// The message of the Error with which opening it fails, or "accepted".
inline doctest::String refusal(const StoredParts& parts) {
  try {
    open_parts(parts);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace aqhost
