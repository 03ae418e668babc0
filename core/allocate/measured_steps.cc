#include "allocate/measured_steps.h"

#include <utility>

#include "base/counted.h"
#include "base/error.h"
#include "base/file.h"
#include "run/run_difference.h"
#include "run/states.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr const char *kResult = "result", *kState = "state", *kShape = "shape", *kFolder = "folder",
                     *kResults = "results";

std::string state_name(int32_t step) { return fmt::format("states-{:05}.safetensors", step); }

}  // namespace

std::vector<std::size_t> modules_of_layer(const Model& model, int32_t layer) {
  const int32_t key = layer < model.desc().n_layers ? layer : -1;
  std::vector<std::size_t> modules;
  for (const Module& m : model.modules())
    if (m.key.layer == key) modules.push_back(m.index);
  return modules;
}

MeasuredSteps::MeasuredSteps(const fs::path& target, const Json& manifest, Resume resume,
                             Comm& comm, RunObserver& observer)
    : comm_(&comm) {
  require_same_run(manifest, comm);
  if (comm.rank() == 0) {
    work_ = std::make_unique<WorkFolder>(WorkFolder::OfFile(), target);
    path_ = work_->path().string();
    open(manifest, resume, observer);
  }
  tell_others();
  if (finished() > 0)
    observer.inform(fmt::format("going on after {} of measuring in {}",
                                counted(finished(), "finished step"), path_));
}

/// Finds out on rank 0 which steps are finished.
void MeasuredSteps::open(const Json& manifest, Resume resume, RunObserver& observer) {
  if (may_resume(*work_, manifest, resume)) {
    Json state;
    while (read_step(state, observer)) {
    }
    if (!results_.empty() && !state.is_null()) load_state(state, observer);
    if (results_.empty() && resume == Resume::kRequired)
      fail("{}: there is nothing to go on with (--resume required): the first step is not whole",
           path_);
  }
  if (results_.empty()) work_->clear();
  work_->write_manifest(manifest, {});
}

/// Reads the record of the next step, and sets `state` to the mark of its state. Returns false if
/// there is none that is whole.
bool MeasuredSteps::read_step(Json& state, RunObserver& observer) {
  const fs::path path = record_path(work_->progress(), finished());
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return false;
  const std::string content = read_file(path);  // a file that cannot be read is not a damaged one
  try {
    const Json file = parse_record_file(content, path.string());
    const Field record = Field(file, path.string())["record"];
    state = record[kState].json();
    results_.push_back(record[kResult].json());
    return true;
  } catch (const Error& e) {
    observer.warn(fmt::format("{}; this step of measuring is done again", e.what()));
    return false;
  }
}

/// Loads the state of the last finished step. If it is damaged, no step counts as finished.
void MeasuredSteps::load_state(const Json& state, RunObserver& observer) {
  const FileMark mark = parse_mark(Field(state, path_));
  if (const std::string what = damage(work_->progress(), mark); !what.empty()) {
    observer.warn(fmt::format("{}; all steps of measuring are done again", what));
    results_.clear();
    return;
  }
  state_ = load_states(work_->progress() / mark.name, {}).x;
}

/// Tells the other ranks what rank 0 has found.
void MeasuredSteps::tell_others() {
  if (comm_->size() == 1) return;
  Json found;
  if (comm_->rank() == 0) {
    found = {{kResults, results_}, {kFolder, path_}, {kShape, nullptr}};
    if (state_.defined()) found[kShape] = state_.sizes().vec();
  }
  found = Json::parse(comm_->all_gather(to_text(found)).front());
  results_ = found[kResults].get<std::vector<Json>>();
  path_ = found[kFolder].get<std::string>();
  if (found[kShape].is_null()) return;
  if (comm_->rank() != 0) state_ = at::empty(found[kShape].get<std::vector<int64_t>>(), at::kFloat);
  comm_->broadcast(state_, 0);
}

void MeasuredSteps::finish(Json result, const at::Tensor& state) {
  if (work_ != nullptr) {
    work_->check_in_place();
    const int32_t step = finished();
    Json record{{kResult, result}, {kState, nullptr}};
    if (state.defined()) {
      StatesFile(work_->progress(), state_name(step), {state, {}}).finish();
      record[kState] = to_json(mark_of(work_->progress(), state_name(step)));
      flush_folder(work_->progress());
    }
    work_->keep();
    write_record(work_->progress(), step, std::move(record));
    std::error_code ignored;
    if (step > 0) fs::remove(work_->progress() / state_name(step - 1), ignored);
  }
  results_.push_back(std::move(result));
}

std::string MeasuredSteps::kept() const {
  if (comm_ == nullptr || results_.empty()) return {};
  return kept_text(counted(finished(), "finished step") + " of measuring", finished(), path_);
}

void MeasuredSteps::remove() {
  if (work_ != nullptr) work_->clear();
  work_.reset();
}

}  // namespace aqhost
