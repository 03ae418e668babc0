#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "base/error.h"
#include "run/comm_link.h"

namespace aqhost {
namespace {

using c10d::ProcessGroupGloo;
using Device = std::shared_ptr<gloo::transport::Device>;

/// No call fails because it takes long: CommWatch decides when a rank is lost. Every wait() needs
/// it, because without it Gloo takes the time that the ranks had to connect.
constexpr std::chrono::hours kNoTimeout{24 * 365};

/// The local address from which this machine reaches `host`, in digits; "" if it does not.
std::string address_toward(const std::string& host, uint16_t port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;  // connecting such a socket sends nothing
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return "";
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, &::freeaddrinfo);
  for (const addrinfo* to = found; to != nullptr; to = to->ai_next) {
    const int s = ::socket(to->ai_family, SOCK_DGRAM, 0);
    if (s < 0) continue;
    sockaddr_storage own{};
    socklen_t length = sizeof own;
    auto* address = reinterpret_cast<sockaddr*>(&own);
    char digits[NI_MAXHOST] = "";
    const bool is_known =
        ::connect(s, to->ai_addr, to->ai_addrlen) == 0 && ::getsockname(s, address, &length) == 0 &&
        ::getnameinfo(address, length, digits, sizeof digits, nullptr, 0, NI_NUMERICHOST) == 0;
    ::close(s);
    if (is_known) return digits;
  }
  return "";
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

/// The address at which the other ranks reach this one: the one from which it reaches the store.
/// For a rank on the store's own machine, that can be a loopback address, which ranks on other
/// machines cannot use; then it is the one from which it reaches such a rank.
std::string own_address(const World& world, KeyStore& store) {
  std::string own = address_toward(world.address, world.port);
  std::vector<std::string> keys;
  for (int rank = 0; rank < world.size; rank++) keys.push_back(fmt::format("address/{}", rank));
  store.set(keys[static_cast<std::size_t>(world.rank)], own);
  for (const std::string& other : store.get(keys))
    if (is_loopback(own) && !other.empty() && !is_loopback(other))
      own = address_toward(other, world.port);
  return own;
}

/// The network interface, as PyTorch chooses it: the one that GLOO_SOCKET_IFNAME names.
Device open_gloo_device(const World& world, KeyStore& store) {
  if (const char* name = std::getenv("GLOO_SOCKET_IFNAME"); name != nullptr && *name != '\0')
    return ProcessGroupGloo::createDeviceForInterface(name);
  const std::string address = own_address(world, store);
  return address.empty() ? ProcessGroupGloo::createDefaultDevice()
                         : ProcessGroupGloo::createDeviceForHostname(address);
}

/// A send or a receive that is on its way.
struct Pending {
  c10::intrusive_ptr<c10d::Work> work;
  int peer;
};

/// What waits, so that another thread can make it stop.
class Waiting {
 public:
  void add(const Pending& pending) {
    const std::lock_guard lock(mutex_);
    if (aborted_) throw BrokenLink(-1, "the connections are closed");
    pending_.push_back(pending);
  }

  void remove(const c10::intrusive_ptr<c10d::Work>& work) {
    const std::lock_guard lock(mutex_);
    std::erase_if(pending_, [&](const Pending& pending) { return pending.work == work; });
  }

  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    for (const Pending& pending : pending_) pending.work->abort();
  }

 private:
  std::mutex mutex_;
  std::vector<Pending> pending_;
  bool aborted_ = false;
};

class GlooTransfer : public Transfer {
 public:
  explicit GlooTransfer(Waiting& waiting) : waiting_(waiting) {}

  ~GlooTransfer() override {
    for (const Pending& pending : pending_) waiting_.remove(pending.work);
  }

  void add(const Pending& pending) {
    waiting_.add(pending);
    pending_.push_back(pending);
  }

  void wait() override {
    for (const Pending& pending : pending_) {
      bool done = false;
      try {
        done = pending.work->wait(kNoTimeout);
      } catch (const std::exception& e) {
        throw BrokenLink(pending.peer, libtorch_reason(e));
      }
      if (!done) throw BrokenLink(-1, "the connections are closed");
    }
  }

 private:
  Waiting& waiting_;
  std::vector<Pending> pending_;
};

/// Notices when a peer closes its connection: it waits for a message that never comes. Gloo does
/// not tell the receiver of a message that was cut off in the middle.
class Sentinel {
 public:
  using OnClosed = std::function<void(int peer, const std::string& reason)>;

  Sentinel(ProcessGroupGloo& group, int peer, OnClosed on_closed) {
    std::vector<at::Tensor> nothing{at::zeros({1}, at::kByte)};
    work_ = group.recv(nothing, peer, kTag);
    thread_ = std::thread([work = work_, peer, on_closed = std::move(on_closed)] {
      try {
        work->wait(kNoTimeout);
      } catch (const std::exception& e) {
        on_closed(peer, libtorch_reason(e));
      }
    });
  }
  ~Sentinel() {
    work_->abort();
    thread_.join();
  }
  Sentinel(const Sentinel&) = delete;
  Sentinel& operator=(const Sentinel&) = delete;

  static constexpr int kTag = std::numeric_limits<int>::max();

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::thread thread_;
};

class GlooLink : public CommLink {
 public:
  GlooLink(const World& world, KeyStore& store, std::chrono::milliseconds timeout,
           const Sentinel::OnClosed& on_closed)
      : options_(ProcessGroupGloo::Options::create(timeout)) {
    options_->devices.push_back(open_gloo_device(world, store));
    options_->threads = 1;  // for collectives, which are not used
    group_ =
        c10::make_intrusive<ProcessGroupGloo>(store.c10d_store(), world.rank, world.size, options_);
    for (int peer = 0; peer < world.size; peer++)
      if (peer != world.rank)
        sentinels_.push_back(std::make_unique<Sentinel>(*group_, peer, on_closed));
  }

  std::unique_ptr<Transfer> start(const std::vector<Message>& sends,
                                  const std::vector<Message>& receives) override {
    auto transfer = std::make_unique<GlooTransfer>(waiting_);
    const int tag = next_tag();
    for (const Message& message : receives) {
      std::vector<at::Tensor> tensor{message.tensor};
      post(*transfer, message.peer, [&] { return group_->recv(tensor, message.peer, tag); });
    }
    for (const Message& message : sends) {
      std::vector<at::Tensor> tensor{message.tensor};
      post(*transfer, message.peer, [&] { return group_->send(tensor, message.peer, tag); });
    }
    return transfer;
  }

  void finish() override {}

  void abort() noexcept override { waiting_.abort(); }

 private:
  template <typename Start>
  static void post(GlooTransfer& transfer, int peer, const Start& start_work) {
    c10::intrusive_ptr<c10d::Work> work;
    try {
      work = start_work();
    } catch (const std::exception& e) {
      throw BrokenLink(peer, libtorch_reason(e));
    }
    transfer.add({work, peer});
  }

  /// Every call has a number of its own, the same on all ranks, so that Gloo cannot take a message
  /// for one of another call.
  int next_tag() {
    tag_ = (tag_ + 1) % Sentinel::kTag;
    return tag_;
  }

  c10::intrusive_ptr<ProcessGroupGloo::Options> options_;
  c10::intrusive_ptr<ProcessGroupGloo> group_;
  std::vector<std::unique_ptr<Sentinel>> sentinels_;
  Waiting waiting_;
  int tag_ = 0;
};

}  // namespace

std::unique_ptr<CommLink> connect_gloo(
    const World& world, KeyStore& store, std::chrono::milliseconds timeout,
    const std::function<void(int peer, const std::string& reason)>& on_closed) {
  try {
    return std::make_unique<GlooLink>(world, store, timeout, on_closed);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    throw BrokenLink(
        -1, libtorch_reason(e) + ", GLOO_SOCKET_IFNAME can name the network interface to use");
  }
}

}  // namespace aqhost
