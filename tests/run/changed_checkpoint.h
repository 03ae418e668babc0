#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "base/file.h"
#include "base/json.h"
#include "checkpoint/reader.h"
#include "whole_writer.h"

namespace aqhost {

/// The tensors of a checkpoint and their bytes, by name.
using Tensors = std::map<std::string, std::pair<TensorInfo, std::string>>;

/// Lets `change` change the tensors of the checkpoint in `folder`, which are then in one file.
inline void change_tensors(const std::filesystem::path& folder,
                           const std::function<void(Tensors&)>& change) {
  Tensors tensors;
  {
    const Reader reader(folder);
    for (const TensorInfo& info : reader.tensors()) {
      const auto bytes = reader.bytes(info.name);
      tensors[info.name] = {info, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
    }
  }
  change(tensors);
  for (const auto& entry : list_folder(folder))
    if (entry.path().string().find(".safetensors") != std::string::npos)
      std::filesystem::remove(entry.path());
  std::vector<TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) {
    infos.push_back(tensor.first);
    infos.back().name = name;
  }
  WholeWriter writer(folder, infos, int64_t{1} << 40);
  for (const auto& [name, tensor] : tensors)
    writer.write(name, std::as_bytes(std::span(tensor.second)));
  writer.finish();
}

/// Lets `change` change the config.json in `folder`.
inline void change_config(const std::filesystem::path& folder,
                          const std::function<void(Json&)>& change) {
  Json config = read_json(folder / "config.json");
  change(config);
  write_file(folder / "config.json", config.dump());
}

}  // namespace aqhost
