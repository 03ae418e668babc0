#pragma once

#include <ATen/ATen.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/observer.h"
#include "base/work_folder.h"
#include "plugin/model.h"
#include "run/comm.h"
#include "run/unit_record.h"

namespace aqhost {

/// The modules of a layer, or for the number of layers those outside them, as indices in
/// Model::modules().
std::vector<std::size_t> modules_of_layer(const Model& model, int32_t layer);

/// What the steps of measuring have given. The results lie in a work folder, so that a process
/// that ends early goes on after the last finished step:
///   manifest.json             what identifies the measuring, see run_manifest()
///   progress/unit-00007.json  the result of a step, which was flushed to the disk
///   progress/states-00007.safetensors   a tensor that the next step needs, if it needs one
/// If there are several ranks, rank 0 keeps the folder, and the others learn from it what is
/// finished. All functions but kept() are collective (see Comm).
class MeasuredSteps {
 public:
  /// Keeps nothing; for one process.
  MeasuredSteps() = default;
  /// Opens or creates the work folder of the file `target`, which the result of the measuring is
  /// going to be written to. Throws an Error if the folder has the results of another measuring
  /// (see run_differences()), or if another rank measures something else. `comm` is borrowed.
  MeasuredSteps(const std::filesystem::path& target, const Json& manifest, Resume resume,
                Comm& comm, RunObserver& observer);

  /// The number of finished steps, from the first on.
  int32_t finished() const { return static_cast<int32_t>(results_.size()); }
  const Json& result(int32_t step) const { return results_[static_cast<std::size_t>(step)]; }
  /// What the last finished step has left for the next one, on the CPU; undefined if nothing.
  const at::Tensor& state() const { return state_; }

  /// Records the result of the next step; it and `state` are the same on every rank.
  void finish(Json result, const at::Tensor& state = {});
  /// A sentence that says where finished steps are kept and how to go on; "" if there are none.
  std::string kept() const;
  /// Removes the work folder.
  void remove();

 private:
  void open(const Json& manifest, Resume resume, RunObserver& observer);
  bool read_step(Json& state, RunObserver& observer);
  void load_state(const Json& state, RunObserver& observer);
  void tell_others();

  Comm* comm_ = nullptr;              // null: nothing is kept
  std::unique_ptr<WorkFolder> work_;  // of rank 0
  std::string path_;                  // of the work folder
  std::vector<Json> results_;
  at::Tensor state_;
};

}  // namespace aqhost
