#include "run/comm.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <deque>
#include <stdexcept>
#include <thread>

#include "base/error.h"
#include "run/comm_link.h"
#include "run/comm_watch.h"
#include "run/pieces.h"

namespace aqhost {
namespace {

using Clock = std::chrono::steady_clock;

/// How many steps are on their way at once. On a GPU, all of them are in one queue anyway.
std::size_t steps_at_once(const std::vector<at::Tensor>& tensors) {
  return tensors.front().is_cpu() ? 2 : 1;
}

/// The bytes of each owner that one step sends. Starting a step of a GPU takes NCCL two to three
/// milliseconds, in which an NVLink sends half a gigabyte.
int64_t step_bytes(const std::vector<at::Tensor>& tensors, int ranks) {
  constexpr int64_t kMinimum = 16 << 20, kOfGpu = int64_t{1} << 30;  // the latter for all owners
  return tensors.front().is_cpu() ? kMinimum : std::max(kMinimum, kOfGpu / ranks);
}

int64_t bytes_of(const std::vector<Message>& messages) {
  int64_t bytes = 0;
  for (const Message& message : messages) bytes += static_cast<int64_t>(message.tensor.nbytes());
  return bytes;
}

at::Tensor flat(const at::Tensor& tensor) {
  if (!tensor.is_contiguous()) throw std::logic_error("Comm takes contiguous tensors");
  return tensor.view(-1);
}

at::Tensor part_of(const std::vector<at::Tensor>& tensors, const Piece& piece) {
  return flat(tensors[piece.tensor]).narrow(0, piece.begin, piece.count);
}

void require_owners(const std::vector<at::Tensor>& tensors, const std::vector<int>& owners,
                    int size) {
  if (tensors.size() != owners.size()) throw std::logic_error("Comm takes an owner per tensor");
  for (const int owner : owners)
    if (owner < 0 || owner >= size) throw std::logic_error("no rank has an owner's number");
  for (const at::Tensor& tensor : tensors)
    if (tensor.device() != tensors.front().device())
      throw std::logic_error("Comm takes tensors on one device");
}

/// own := parts[0] + parts[1] + ..., where own is the part of `rank` and the others are used up.
void add_in_order(at::Tensor own, std::vector<at::Tensor>& parts, std::size_t rank) {
  for (std::size_t r = 1; r < rank; r++) parts[0].add_(parts[r]);
  if (rank > 0) own.add_(parts[0]);
  for (std::size_t r = rank + 1; r < parts.size(); r++) own.add_(parts[r]);
}

std::chrono::milliseconds seconds_of(const char* name, std::chrono::milliseconds missing) {
  const char* text = std::getenv(name);
  if (text == nullptr) return missing;
  double seconds = 0;
  const char* end = text + std::string_view(text).size();
  const auto [stop, error] = std::from_chars(text, end, seconds);
  if (error != std::errc() || stop != end || !(seconds >= 0.1 && seconds <= 1e6))
    fail("the environment variable {} is \"{}\": expected a number of seconds from 0.1 to 1000000",
         name, text);
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

}  // namespace

CommTimes CommTimes::of_environment() {
  CommTimes times;
  times.join = seconds_of("AQHOST_JOIN_TIMEOUT", times.join);
  times.silence = seconds_of("AQHOST_RANK_TIMEOUT", times.silence);
  times.grace = std::min(times.grace, times.silence);
  return times;
}

Comm::Comm(int rank, int size) : rank_(rank), size_(size) { station("start"); }

std::unique_ptr<Comm> Comm::alone() { return std::unique_ptr<Comm>(new Comm(0, 1)); }

Comm::~Comm() {
  fail_with("it ended early");
  if (watch_ != nullptr) watch_->on_loss(nullptr);  // the links end before the watch
}

void Comm::station(const std::string& name) {
  const auto is_named = [&](const StationTraffic& traffic) { return traffic.station == name; };
  const auto found = std::find_if(traffic_.begin(), traffic_.end(), is_named);
  station_ = static_cast<std::size_t>(found - traffic_.begin());
  if (found == traffic_.end()) traffic_.push_back({name});
  if (watch_ != nullptr) watch_->station(name);
}

std::string Comm::lost_rank_message() const {
  return watch_ == nullptr ? "" : watch_->lost_rank_message();
}

void Comm::announce_failure(const std::string& message) const noexcept {
  if (watch_ == nullptr) return;
  try {
    watch_->announce_failure(message);
  } catch (const std::exception&) {  // the call that comes next fails, too
  }
}

void Comm::run_call(const std::function<void()>& body) {
  watch_->check();
  const Clock::time_point begin = Clock::now();
  try {
    body();
  } catch (const BrokenLink& broken) {
    watch_->broken(broken.peer, broken.what());
  }
  traffic_[station_].seconds += std::chrono::duration<double>(Clock::now() - begin).count();
}

std::unique_ptr<Transfer> Comm::start(CommLink& link, const std::vector<Message>& sends,
                                      const std::vector<Message>& receives) {
  traffic_[station_].bytes += bytes_of(sends);
  return link.start(sends, receives);
}

CommLink& Comm::link_of(const at::Tensor& tensor) const {
  if (tensor.is_cpu()) return *cpu_link_;
  if (gpu_link_ == nullptr) throw std::logic_error("Comm was joined without a GPU");
  return *gpu_link_;
}

std::vector<at::Tensor> Comm::gather_bytes(const at::Tensor& own,
                                           const std::vector<int64_t>& lengths) {
  std::vector<at::Tensor> parts;
  std::vector<Message> sends, receives;
  for (int rank = 0; rank < size_; rank++) {
    const int64_t length = lengths[static_cast<std::size_t>(rank)];
    parts.push_back(rank == rank_ ? own : at::empty({length}, at::kByte));
    if (rank != rank_ && own.numel() > 0) sends.push_back({own, rank});
    if (rank != rank_ && length > 0) receives.push_back({parts.back(), rank});
  }
  start(*cpu_link_, sends, receives)->wait();
  return parts;
}

std::vector<at::Tensor> Comm::gather_small(const at::Tensor& tensor) {
  const at::Tensor own = flat(tensor).view(at::kByte);
  std::vector<at::Tensor> parts =
      gather_bytes(own, std::vector<int64_t>(static_cast<std::size_t>(size_), own.numel()));
  for (at::Tensor& part : parts) part = part.view(tensor.scalar_type()).view(tensor.sizes());
  return parts;
}

void Comm::barrier() {
  if (size_ == 1) return;
  run_call([&] { gather_small(at::zeros({1}, at::kByte)); });
}

std::vector<std::string> Comm::all_gather(const std::string& bytes) {
  if (size_ == 1) return {bytes};
  std::vector<std::string> texts;
  run_call([&] {
    const auto length = static_cast<int64_t>(bytes.size());
    std::vector<int64_t> lengths;
    for (const at::Tensor& other : gather_small(at::full({1}, length, at::kLong)))
      lengths.push_back(other.item<int64_t>());
    at::Tensor own = at::empty({length}, at::kByte);
    std::copy(bytes.begin(), bytes.end(), own.data_ptr<uint8_t>());
    for (const at::Tensor& part : gather_bytes(own, lengths))
      texts.emplace_back(reinterpret_cast<const char*>(part.data_ptr<uint8_t>()),
                         static_cast<std::size_t>(part.numel()));
  });
  return texts;
}

void Comm::broadcast(at::Tensor& tensor, int root) {
  std::vector<at::Tensor> tensors{tensor};
  share(tensors, {root});
}

void Comm::share(std::vector<at::Tensor>& tensors, const std::vector<int>& owners) {
  require_owners(tensors, owners, size_);
  if (size_ == 1 || tensors.empty()) return;
  run_call([&] {
    CommLink& link = link_of(tensors.front());
    std::deque<std::unique_ptr<Transfer>> running;
    for (const std::vector<Piece>& step :
         steps_of(tensors, owners, size_, step_bytes(tensors, size_))) {
      std::vector<Message> sends, receives;
      for (const Piece& piece : step) {
        const at::Tensor part = part_of(tensors, piece);
        if (piece.owner != rank_) {
          receives.push_back({part, piece.owner});
          continue;
        }
        for (int peer = 0; peer < size_; peer++)
          if (peer != rank_) sends.push_back({part, peer});
      }
      running.push_back(start(link, sends, receives));
      if (running.size() < steps_at_once(tensors)) continue;
      running.front()->wait();
      running.pop_front();
    }
    for (const auto& transfer : running) transfer->wait();
    link.finish();
  });
}

/// One step of reduce() on one rank: what it receives for the pieces that it owns.
class Comm::ReduceStep {
 public:
  ReduceStep(const std::vector<at::Tensor>& tensors, const std::vector<Piece>& step, int rank,
             int size, std::vector<at::Tensor>& buffers)
      : rank_(static_cast<std::size_t>(rank)) {
    int64_t offset = 0;
    for (const Piece& piece : step) {
      const at::Tensor own = part_of(tensors, piece);
      if (piece.owner != rank) {
        sends_.push_back({own, piece.owner});
        continue;
      }
      offset = (offset + 7) / 8 * 8;  // as steps_of() counts
      std::vector<at::Tensor> parts(static_cast<std::size_t>(size));
      const int64_t bytes = static_cast<int64_t>(own.nbytes());
      for (int peer = 0; peer < size; peer++) {
        if (peer == rank) continue;
        at::Tensor& buffer = buffers[static_cast<std::size_t>(peer)];
        if (!buffer.defined())
          buffer = at::empty({step_bytes(tensors, size)}, own.options().dtype(at::kByte));
        at::Tensor& part = parts[static_cast<std::size_t>(peer)];
        part = buffer.narrow(0, offset, bytes).view(own.scalar_type());
        receives_.push_back({part, peer});
      }
      offset += bytes;
      owned_.push_back({own, std::move(parts)});
    }
  }

  void start(Comm& comm, CommLink& link) { transfer_ = comm.start(link, sends_, receives_); }

  void finish() {
    transfer_->wait();
    for (auto& [own, parts] : owned_) add_in_order(own, parts, rank_);
  }

 private:
  struct Owned {
    at::Tensor own;
    std::vector<at::Tensor> parts;  // by rank; undefined for this one
  };

  const std::size_t rank_;
  std::vector<Message> sends_, receives_;
  std::vector<Owned> owned_;
  std::unique_ptr<Transfer> transfer_;
};

void Comm::reduce(std::vector<at::Tensor>& tensors, const std::vector<int>& owners) {
  require_owners(tensors, owners, size_);
  if (size_ == 1 || tensors.empty()) return;
  run_call([&] {
    CommLink& link = link_of(tensors.front());
    const std::size_t at_once = steps_at_once(tensors);
    std::vector<std::vector<at::Tensor>> buffers(
        at_once, std::vector<at::Tensor>(static_cast<std::size_t>(size_)));
    std::deque<ReduceStep> running;
    std::size_t number = 0;
    for (const std::vector<Piece>& step :
         steps_of(tensors, owners, size_, step_bytes(tensors, size_))) {
      if (running.size() == at_once) {
        running.front().finish();
        running.pop_front();
      }
      running.emplace_back(tensors, step, rank_, size_, buffers[number++ % at_once])
          .start(*this, link);
    }
    for (ReduceStep& step : running) step.finish();
    link.finish();
  });
}

void Comm::sum(at::Tensor& tensor) {
  if (size_ == 1) return;
  run_call([&] {
    const std::vector<at::Tensor> parts = gather_small(tensor);
    at::Tensor total = parts[0].clone();
    for (std::size_t rank = 1; rank < parts.size(); rank++) total.add_(parts[rank]);
    tensor.copy_(total);
  });
}

void Comm::sum(std::vector<double>& values) {
  if (size_ == 1) return;
  at::Tensor tensor =
      at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kDouble);
  sum(tensor);
}

void Comm::maximum(at::Tensor& tensor) {
  if (size_ == 1) return;
  run_call([&] {
    at::Tensor most = tensor.clone();
    for (const at::Tensor& part : gather_small(tensor)) most = at::maximum(most, part);
    tensor.copy_(most);
  });
}

void Comm::end() noexcept {
  if (std::exchange(has_ended_, true) || watch_ == nullptr) return;
  try {
    watch_->end();
  } catch (const std::exception&) {  // the others find out by themselves
  }
}

void Comm::fail_with(const std::string& message) noexcept {
  if (std::exchange(has_ended_, true) || watch_ == nullptr) return;
  try {
    watch_->fail_with(message);
  } catch (const std::exception&) {  // the others find out by themselves
  }
}

}  // namespace aqhost
