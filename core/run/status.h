#pragma once

#include <cstdint>
#include <filesystem>

namespace aqhost {

/// What the work folder of a run (see RunStore) says about its progress.
struct RunStatus {
  bool measures = false;  // whether it is of `allocate`; then steps count in place of layers
  int64_t layers = 0, finished_layers = 0;
  int64_t modules = 0, finished_modules = 0;  // of those that the plan quantizes
  double loss = 0, rtn_loss = 0;              // sums over the finished modules
  double seconds = 0;                         // of all tries of the run
  bool running = false;                       // whether a run has locked the folder
};

/// Reads the status of a work folder. Throws an Error that names file and field if the folder is no
/// work folder of aqhost, or if a record is damaged.
RunStatus read_status(const std::filesystem::path& work);

}  // namespace aqhost
