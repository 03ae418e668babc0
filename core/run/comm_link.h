#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "run/key_store.h"
#include "run/world.h"

namespace aqhost {

/// A connection to another rank has failed.
class BrokenLink : public std::runtime_error {
 public:
  /// `peer_rank` is -1 if it is not known.
  BrokenLink(int peer_rank, const std::string& reason)
      : std::runtime_error(reason), peer(peer_rank) {}

  const int peer;
};

/// A contiguous tensor that is sent to or received from the rank `peer`.
struct Message {
  at::Tensor tensor;
  int peer;
};

/// Messages on their way.
class Transfer {
 public:
  virtual ~Transfer() = default;
  /// After it, LibTorch's operations on this thread can use the tensors. Throws BrokenLink.
  virtual void wait() = 0;
};

/// The connections between all ranks for tensors on one kind of device. All calls but abort() come
/// from one thread. All functions but abort() throw BrokenLink.
class CommLink {
 public:
  virtual ~CommLink() = default;

  /// Starts to send and to receive. Two ranks list the messages from one to the other in the same
  /// order, in corresponding calls; messages to itself are not allowed.
  virtual std::unique_ptr<Transfer> start(const std::vector<Message>& sends,
                                          const std::vector<Message>& receives) = 0;

  /// Returns when everything that was started and waited for is done on the device, too.
  virtual void finish() = 0;

  /// Makes all calls that wait, and all later calls, throw BrokenLink. Thread-safe.
  virtual void abort() noexcept = 0;
};

/// Connects all ranks by Gloo, within `timeout`. `on_closed` is called by other threads, once for
/// every connection that is closed by the other side.
std::unique_ptr<CommLink> connect_gloo(
    const World& world, KeyStore& store, std::chrono::milliseconds timeout,
    const std::function<void(int peer, const std::string& reason)>& on_closed);

/// Connects all ranks by NCCL, each with its GPU, within `timeout`. `is_lost` says whether a rank
/// is lost, so that the link must stop waiting. Throws an Error if NCCL cannot be opened.
std::unique_ptr<CommLink> connect_nccl(const World& world, KeyStore& store, at::Device device,
                                       std::chrono::milliseconds timeout,
                                       std::function<bool()> is_lost);

}  // namespace aqhost
