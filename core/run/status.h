#pragma once

#include <cstdint>
#include <filesystem>

namespace aqhost {

/// What a work folder (see RunStore) tells of its run.
struct RunStatus {
  int64_t layers = 0, finished_layers = 0;
  int64_t modules = 0, finished_modules = 0;  // that the plan quantizes
  double loss = 0, rtn_loss = 0;              // sums over the finished modules
  double seconds = 0;                         // of all tries
  bool running = false;                       // a run has the folder locked
};

/// Error, naming file and field, if the folder is no work folder of aqhost.
RunStatus read_status(const std::filesystem::path& work);

}  // namespace aqhost
