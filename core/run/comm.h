#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "run/wait_notes.h"
#include "run/world.h"

namespace aqhost {

class CommLink;
class CommWatch;
class KeyStore;
class Transfer;
struct Message;

/// How long a process waits for the others.
struct CommTimes {
  std::chrono::milliseconds join{300'000};    // for all to start
  std::chrono::milliseconds silence{30'000};  // after which a process counts as lost
  // for the calling thread to notice that a process was lost, before this process is ended
  std::chrono::milliseconds grace{20'000};

  /// The times above, unless AQHOST_JOIN_TIMEOUT and AQHOST_RANK_TIMEOUT give other numbers of
  /// seconds for `join` and `silence`; `grace` is at most `silence`.
  static CommTimes of_environment();
};

/// What was sent at one station (see Comm::station()).
struct StationTraffic {
  std::string station;
  int64_t bytes = 0;   // of the tensors and texts that this process sent
  double seconds = 0;  // that this process spent in calls, most of them waiting for others
};

/// The processes (ranks) of one run, which exchange tensors. Unless said otherwise, a call is
/// collective: every rank makes the same calls in the same order, with tensors of the same shapes
/// and types. All calls come from one thread.
///
/// The ranks watch each other. If one fails, dies or hangs, a call on any other rank throws an
/// Error that names it and its last station. A rank that makes no call for CommTimes::grace after
/// that is ended by its watching thread, which prints the Error's message. The result of a call
/// depends on the arguments and the number of ranks alone, to the bit.
class Comm {
 public:
  /// The comm of a process that is alone. It sends nothing, has no thread, and is never lost.
  static std::unique_ptr<Comm> alone();

  /// Meets the others. Tensors on the CPU are sent by Gloo, and tensors on `device`, if that is a
  /// GPU (which open_device() has opened), by NCCL. Starts threads. Throws an Error that says which
  /// ranks are missing after `times.join`, or that two processes have the same rank or different
  /// numbers of ranks, or why a rank failed before it joined. While it waits, `inform` (if it is
  /// not empty) is told for which ranks, by this thread; of the ranks that have met, only the
  /// lowest tells it. A world of one process is alone().
  static std::unique_ptr<Comm> join(const World& world, at::Device device,
                                    const CommTimes& times = CommTimes::of_environment(),
                                    WaitNotes::Inform inform = {});

  /// Tells the others, in place of join(), that this rank has failed because of `message`: join()
  /// on them throws "rank R of N failed: MESSAGE". Tries for at most 5 seconds to reach the store.
  /// Rank 0, which serves the store, then waits for at most 5 seconds until the others have read
  /// it.
  static void report_failure(const World& world, const std::string& message) noexcept;

  /// Unless end() or fail_with() came before, tells the others that this rank has failed.
  ~Comm();
  Comm(const Comm&) = delete;
  Comm& operator=(const Comm&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// The part of `all` that is dealt to this rank: of its first dimension, rank(), rank() + size(),
  /// and so on. Not collective.
  at::Tensor dealt(const at::Tensor& all) const {
    return all.slice(0, rank_, all.size(0), size_).contiguous();
  }

  /// Says what this rank does from now on ("layer 5, solve"). The others show it if this rank is
  /// lost, and traffic() is counted by it. Not collective; cheap.
  void station(const std::string& name);

  /// The sentence that says which rank is lost; "" if none is. Not collective; any thread.
  std::string lost_rank_message() const;

  /// Says that this rank is about to fail because of `message`, which another thread than that of
  /// the calls has found: calls here throw an Error with this message, and calls on the others
  /// throw "rank R of N failed: MESSAGE". Not collective; any thread. Never throws.
  void announce_failure(const std::string& message) const noexcept;

  /// Returns when all ranks have called it.
  void barrier();

  /// Every rank's bytes, by rank. For small things.
  std::vector<std::string> all_gather(const std::string& bytes);

  /// Copies the tensor of `root` to every rank. Contiguous.
  void broadcast(at::Tensor& tensor, int root);

  /// Sums tensors[i] of all ranks into tensors[i] of rank owners[i], elementwise, as 0 + 1 + 2 +
  /// ... in the order of ranks. On the other ranks the tensors do not change. Floating-point,
  /// contiguous, all on one device. Every rank sends the tensors that it does not own, once. It
  /// takes at most 2 * 16 MiB of memory for each other rank; on a GPU 512 MiB for all of them, if
  /// that is more.
  void reduce(std::vector<at::Tensor>& tensors, const std::vector<int>& owners);

  /// Copies tensors[i] of rank owners[i] to every rank. Contiguous, all on one device.
  void share(std::vector<at::Tensor>& tensors, const std::vector<int>& owners);

  /// The elementwise sum and maximum over all ranks of a small tensor on the CPU, or of as many
  /// values on every rank, on every rank.
  void sum(at::Tensor& tensor);
  void sum(std::vector<double>& values);
  void maximum(at::Tensor& tensor);

  /// This rank's traffic by station, in the order of their first use. Not collective.
  const std::vector<StationTraffic>& traffic() const { return traffic_; }

  /// This rank has made its last call and ends well. Rank 0 returns when all others have said so
  /// or are lost, because they need its store until then. Never throws.
  void end() noexcept;

  /// This rank ends because of an error: calls on the others throw "rank R failed: MESSAGE". Not
  /// collective. Rank 0 returns when the others know, after a few seconds at most. Never throws. If
  /// another rank is lost already, the others keep that for the reason.
  void fail_with(const std::string& message) noexcept;

 private:
  class ReduceStep;

  Comm(int rank, int size);
  /// Makes the connections to the other ranks.
  void connect(const World& world, at::Device device, std::chrono::milliseconds timeout);

  /// Runs the body of a call: counts its time, and turns a broken connection into the Error that
  /// says which rank is lost.
  void run_call(const std::function<void()>& body);
  CommLink& link_of(const at::Tensor& tensor) const;
  /// Starts to send and to receive, and counts the bytes.
  std::unique_ptr<Transfer> start(CommLink& link, const std::vector<Message>& sends,
                                  const std::vector<Message>& receives);
  /// Every rank's bytes, by rank; those of rank r are lengths[r] many.
  std::vector<at::Tensor> gather_bytes(const at::Tensor& own, const std::vector<int64_t>& lengths);
  /// Every rank's tensor, by rank.
  std::vector<at::Tensor> gather_small(const at::Tensor& tensor);

  const int rank_, size_;
  std::shared_ptr<KeyStore> store_;  // null if alone, as the next three are
  std::unique_ptr<CommWatch> watch_;
  std::unique_ptr<CommLink> cpu_link_, gpu_link_;  // gpu_link_: null without a GPU
  std::vector<StationTraffic> traffic_;
  std::size_t station_ = 0;  // the index of the current one in traffic_
  bool has_ended_ = false;
};

}  // namespace aqhost
