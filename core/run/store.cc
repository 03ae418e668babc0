#include "run/store.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/error.h"
#include "base/field.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "tensor/device.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

// see RunStore::should_store_states()
constexpr int kRest = 10;
constexpr std::chrono::seconds kMinimumRest{30};

/// The name of the files of one rank about a unit, without the extension.
std::string rank_name(int32_t unit, int rank, int ranks) {
  return fmt::format("states-{:05}", unit) + (ranks > 1 ? fmt::format(".rank-{:04}", rank) : "");
}

std::string states_name(int32_t unit, const Comm& comm) {
  return rank_name(unit, comm.rank(), comm.size()) + ".safetensors";
}

}  // namespace

struct RunStore::Record {
  std::vector<FileMark> shards;
  std::vector<FileMark> states;  // of each rank; empty if a rank has not written them
  UnitReport report;
  PhaseSeconds seconds;
};

/// What another rank says about a unit: the names of the tensors that it has written, the report on
/// its modules, and its states, or null.
struct RunStore::Part {
  std::vector<std::string> written;
  UnitReport report;
  Json states;
};

RunStore::RunStore(WorkFolder& work, Exporter& exporter, const Comm& comm, at::Device device,
                   RunObserver& observer)
    : work_(work),
      exporter_(exporter),
      comm_(comm),
      device_(device),
      observer_(observer),
      next_states_(Clock::now() + kMinimumRest) {}

RunStore::~RunStore() {
  if (writing_.valid()) writing_.wait();
}

std::optional<RunStore::Record> RunStore::read_record(int32_t unit) const {
  const fs::path path = record_path(work_.progress(), unit);
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return {};
  const std::string content = read_file(path);  // a file that cannot be read is not a damaged one
  try {
    const Json file = parse_record_file(content, path.string());
    const Field field = Field(file, path.string())["record"];
    Record record;
    for (const Field& mark : field["shards"].items()) record.shards.push_back(parse_mark(mark));
    for (const Field& mark : field["states"].items()) record.states.push_back(parse_mark(mark));
    record.report = parse_unit_report(field["report"]);
    record.seconds = parse_seconds(field["seconds"]);
    return record;
  } catch (const Error& e) {
    observer_.warn(fmt::format("{}; the layer that it records is done again", e.what()));
    return {};
  }
}

bool RunStore::shards_are_whole(int32_t unit, const Record& record) const {
  std::vector<std::string> names;
  for (const FileMark& mark : record.shards) {
    names.push_back(mark.name);
    if (const std::string what = damage(work_.result(), mark); !what.empty()) {
      observer_.warn(fmt::format("{}; what it holds is done again", what));
      return false;
    }
  }
  return names == exporter_.shards(unit);
}

bool RunStore::states_are_whole(const Record& record) const {
  std::error_code ignored;
  if (record.states.size() != static_cast<std::size_t>(comm_.size())) return false;
  for (const FileMark& states : record.states) {
    if (!fs::exists(work_.progress() / states.name, ignored)) return false;
    const std::string what = damage(work_.progress(), states);
    if (what.empty()) continue;
    observer_.warn(fmt::format("{}; the layer before it is done again", what));
    return false;
  }
  return true;
}

Finished RunStore::open(const Json& manifest, Resume resume, int32_t needs_states,
                        const StatesPlace& place) {
  manifest_ = manifest;
  needs_states_ = needs_states;
  if (!may_resume(work_, manifest, resume)) return {};
  std::vector<std::optional<Record>> records;
  for (int32_t u = 0; u < exporter_.units(); u++) records.push_back(read_record(u));

  const auto at = [&](int32_t unit) -> std::optional<Record>& {
    return records[static_cast<std::size_t>(unit)];
  };
  int32_t done = 0;  // units that have a record and whole shards
  while (done < exporter_.units() && at(done) && shards_are_whole(done, *at(done))) done++;
  const int32_t whole = done;
  // the run can go on after a unit only with the states behind it
  while (done > 0 && done <= needs_states_ && !states_are_whole(*at(done - 1))) done--;
  const bool none_stored =
      std::all_of(records.begin(), records.begin() + whole,
                  [](const std::optional<Record>& record) { return record->states.empty(); });
  if (done == 0 && whole > 0 && none_stored && resume != Resume::kRequired) {
    observer_.inform(
        fmt::format("{}: the run begins anew, because it ended before hidden states were stored; "
                    "{} of {} parts are computed again",
                    work_.path().string(), whole, exporter_.units()));
    return {};
  }
  if (done == 0)
    fail(
        "{}: holds the work of an earlier run that cannot be gone on with: {}; pass --resume never "
        "to begin anew",
        work_.path().string(),
        whole > 0 ? fmt::format("{} of {} parts are whole, but not the hidden states behind them",
                                whole, exporter_.units())
                  : "the first layer is not whole");
  Finished finished;
  finished.units = done;
  for (int32_t u = 0; u < done; u++) finished.report.append(std::move(at(u)->report));
  finished.seconds = at(done - 1)->seconds;
  if (done <= needs_states_) {
    finished.states = load_states(work_.progress() / states_name(done - 1, comm_), place);
    stored_states_.push_back(done - 1);
  }
  finished_ = done;
  return finished;
}

Finished RunStore::open_of_rank_0(int32_t units, int32_t needs_states, const StatesPlace& place) {
  needs_states_ = needs_states;
  finished_ = units;
  Finished finished;
  finished.units = units;
  if (units > 0 && units <= needs_states)
    finished.states = load_states(work_.progress() / states_name(units - 1, comm_), place);
  return finished;
}

void RunStore::begin() {
  if (finished_ == 0) work_.clear();
  // what the ranks of an earlier try have said is not said by those of this one
  std::error_code ignored;
  for (const auto& entry : list_folder(work_.progress())) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("states-") && name.ends_with(".json")) fs::remove(entry.path(), ignored);
  }
  work_.write_manifest(manifest_, exporter_.files());
}

void RunStore::remove_states_before(int32_t unit) const {
  std::error_code ignored;
  for (const auto& entry : list_folder(work_.progress())) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("states-") && name < fmt::format("states-{:05}", unit))
      fs::remove_all(entry.path(), ignored);
  }
}

bool RunStore::is_writing() const {
  return writing_.valid() &&
         writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
}

bool RunStore::should_store_states() const {
  return device_.is_cpu() || (!is_writing() && Clock::now() >= next_states_.load());
}

void RunStore::finish(int32_t unit, const UnitReport& report, const PhaseSeconds& seconds,
                      const BoundaryStates& states, bool store_states) {
  work_.check_in_place();
  const bool with_states = unit < needs_states_ && states.x.defined() && store_states;
  if (device_.is_cpu() || !is_writing()) wait();  // to learn whether it failed
  // States in the host's memory are written to the page cache here, which is as fast as copying
  // them. Those on a GPU are copied here, and another thread brings the copy to the disk.
  const Clock::time_point begin = Clock::now();
  std::shared_ptr<StatesFile> file;
  BoundaryStates copy;
  if (with_states && states.x.is_cpu())
    file = std::make_shared<StatesFile>(work_.progress(), states_name(unit, comm_), states);
  else if (with_states)
    copy = {states.x.clone(), states.original.defined() ? states.original.clone() : at::Tensor()};
  auto before = std::make_shared<std::future<void>>(std::move(writing_));
  writing_ = std::async(std::launch::async, [=, this]() mutable {
    if (before->valid()) before->get();
    try {
      work_.check_in_place();
      if (copy.x.defined()) {
        synchronize(copy.x.device());  // until the copy is complete
        file = std::make_shared<StatesFile>(work_.progress(), states_name(unit, comm_), copy);
        copy = {};
      }
      Json mark;
      if (file) {
        file->finish();
        mark = to_json(mark_of(work_.progress(), states_name(unit, comm_)));
      }
      if (with_states)
        next_states_ =
            Clock::now() + std::max<Clock::duration>(kMinimumRest, kRest * (Clock::now() - begin));
      if (comm_.rank() == 0)
        finish_unit(unit, report, seconds, std::move(mark));
      else
        finish_part(unit, report, std::move(mark));
    } catch (const std::exception& e) {
      // this rank may be waiting for another that waits for these files
      comm_.announce_failure(e.what());
      throw;
    }
  });
}

/// Tells rank 0 that this rank has finished its part of a unit.
void RunStore::finish_part(int32_t unit, const UnitReport& report, Json states) {
  const Json part{{"start", start_},
                  {"written", exporter_.leave(unit)},
                  {"report", aqhost::to_json(report)},
                  {"states", std::move(states)}};
  work_.check_in_place();
  write_file(work_.progress() / (rank_name(unit, comm_.rank(), comm_.size()) + ".json"),
             to_text(part) + "\n");
  finished_ = unit + 1;
}

/// Waits until a rank has finished its part of a unit, and takes what it says.
RunStore::Part RunStore::wait_for_part(int32_t unit, int rank) const {
  const fs::path path = work_.progress() / (rank_name(unit, rank, comm_.size()) + ".json");
  std::error_code ignored;
  Json file;
  while (true) {
    if (fs::exists(path, ignored)) {
      file = read_json(path);
      if (Field(file, path.string())["start"].integer() == start_) break;
    }
    if (const std::string message = comm_.lost_rank_message(); !message.empty()) {
      check_interrupt();  // a signal that stops all ranks is not a failure of the others
      throw Error(message);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const Field json(file, path.string());
  Part part;
  for (const Field& name : json["written"].items()) part.written.push_back(name.text());
  part.report = parse_unit_report(json["report"]);
  if (!json["states"].is_null()) part.states = to_json(parse_mark(json["states"]));
  fs::remove(path, ignored);
  return part;
}

/// Completes the shards of a unit and writes its record. `report` and `states`, the mark of the
/// states or null, are those of rank 0.
void RunStore::finish_unit(int32_t unit, UnitReport report, const PhaseSeconds& seconds,
                           Json states) {
  Json all_states = Json::array({std::move(states)});
  for (int rank = 1; rank < comm_.size(); rank++) {
    Part part = wait_for_part(unit, rank);
    exporter_.note_written(part.written);
    others_report_.append(part.report);
    report.append(std::move(part.report));
    all_states.push_back(std::move(part.states));
  }
  exporter_.finish(unit);
  Json record{{"report", aqhost::to_json(report)}, {"seconds", aqhost::to_json(seconds)}};
  record["shards"] = Json::array();
  for (const std::string& name : exporter_.shards(unit))
    record["shards"].push_back(to_json(mark_of(work_.result(), name)));
  const bool has_states = std::none_of(all_states.begin(), all_states.end(),
                                       [](const Json& mark) { return mark.is_null(); });
  if (has_states) stored_states_.push_back(unit);
  record["states"] = has_states ? std::move(all_states) : Json::array();
  flush_folder(work_.result());
  flush_folder(work_.progress());
  work_.check_in_place();
  write_record(work_.progress(), unit, std::move(record));
  finished_ = unit + 1;
  if (stored_states_.size() >= 2) remove_states_before(stored_states_[stored_states_.size() - 2]);
}

void RunStore::wait() {
  if (writing_.valid()) writing_.get();
}

}  // namespace aqhost
