#include "run/key_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <future>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "base/interrupt.h"

namespace aqhost {
namespace {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

/// Errors reach the user as sentences of this program, so LibTorch's own lines about connections
/// are kept back, unless the user has asked for them.
void silence_libtorch() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
}

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPause{50}, kOneTry{2000};

c10d::TCPStoreOptions options_for(const World& world) {
  c10d::TCPStoreOptions options;
  options.port = world.port;
  options.waitWorkers = false;
  options.timeout = kOneTry;
  return options;
}

bool serves_store(const World& world) { return world.rank == 0 && !world.agent_serves_store; }

std::string store_name(const World& world) {
  return world.agent_serves_store ? "the store of torchrun" : "rank 0";
}

/// Serves the store on all addresses of this machine.
StorePtr serve(const World& world) {
  c10d::TCPStoreOptions options = options_for(world);
  options.isServer = true;
  try {
    return c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
  } catch (const std::exception& e) {
    fail("rank 0 cannot listen on port {} of {} ({}); set MASTER_PORT to a free port", world.port,
         world.address, libtorch_reason(e));
  }
}

/// Whether a program accepts a connection at one of the addresses. Waits for at most kOneTry.
bool is_listening(const addrinfo* addresses) {
  const Clock::time_point latest = Clock::now() + kOneTry;
  for (const addrinfo* to = addresses; to != nullptr; to = to->ai_next) {
    const int s = ::socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s < 0) continue;
    const int begun = ::connect(s, to->ai_addr, to->ai_addrlen);
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(latest - Clock::now());
    pollfd ready{s, POLLOUT, 0};
    int error = begun == 0 ? 0 : errno;
    socklen_t length = sizeof error;
    if (error == EINPROGRESS && ::poll(&ready, 1, std::max(0, static_cast<int>(left.count()))) == 1)
      ::getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &length);
    ::close(s);
    if (error == 0) return true;
  }
  return false;
}

/// What keeps this process from the store, and what to do about it.
struct Obstacle {
  std::string what, remedy;
};

Obstacle find_obstacle(const World& world) {
  const std::string port = std::to_string(world.port);
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (const int error = ::getaddrinfo(world.address.c_str(), port.c_str(), &hints, &found))
    return {fmt::format("the host name \"{}\" is unknown here ({})", world.address,
                        ::gai_strerror(error)),
            "set MASTER_ADDR to a name or an address of the machine on which rank 0 runs"};
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  const bool listens = is_listening(found);
  const std::string place = fmt::format("{}:{}", world.address, world.port);
  const std::string what =
      listens ? fmt::format("the program that listens at {} does not answer as {} does", place,
                            store_name(world))
              : "nobody listens at " + place;
  if (serves_store(world))
    return {what, "set MASTER_ADDR to an address of the machine on which rank 0 runs"};
  if (listens) return {what, "set MASTER_PORT to a port that no other program uses, on all ranks"};
  return {what, fmt::format("check that {} runs and that MASTER_ADDR and MASTER_PORT are the same "
                            "for all ranks",
                            world.agent_serves_store ? "torchrun" : "rank 0")};
}

using Try = std::future<StorePtr>;

/// Begins to connect to the store. The try has a thread of its own, because LibTorch waits for ever
/// for the answer of a program that listens but is no store.
Try begin_to_connect(const World& world) {
  auto promise = std::make_shared<std::promise<StorePtr>>();
  std::thread([promise, world] {
    try {
      promise->set_value(c10::make_intrusive<c10d::TCPStore>(world.address, options_for(world)));
    } catch (const std::exception&) {
      promise->set_exception(std::current_exception());
    }
  }).detach();
  return promise->get_future();
}

/// Reaches the store, or returns null after `timeout`.
StorePtr connect(const World& world, std::chrono::milliseconds timeout, WaitNotes& notes) {
  const Clock::time_point latest = Clock::now() + std::max(timeout, kOneTry);
  for (Try running; Clock::now() < latest;) {
    check_interrupt();
    if (!running.valid()) running = begin_to_connect(world);
    try {
      if (running.wait_for(kPause) == std::future_status::ready) {
        StorePtr store = running.get();
        store->setTimeout(timeout);
        return store;
      }
    } catch (const std::exception&) {  // find_obstacle() says why
      std::this_thread::sleep_for(kPause);
    }
    notes.waits_for([&] {
      return fmt::format("rank {} of {} waits for {}: {}", world.rank, world.size,
                         store_name(world), find_obstacle(world).what);
    });
  }
  return {};
}

}  // namespace

std::string libtorch_reason(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  const std::string text = of_torch != nullptr ? of_torch->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

struct KeyStore::Connection {
  World world;
  std::chrono::milliseconds timeout;
  StorePtr server;  // null if another process serves the store
  StorePtr tcp;
  c10d::PrefixStore ours;
  StorePtr libtorchs;

  Connection(const World& of_world, std::chrono::milliseconds of_timeout, StorePtr of_server,
             const StorePtr& of_tcp)
      : world(of_world),
        timeout(of_timeout),
        server(std::move(of_server)),
        tcp(of_tcp),
        ours(prefix("aqhost"), tcp),
        libtorchs(c10::make_intrusive<c10d::PrefixStore>(prefix("c10d"), tcp)) {}

  std::string prefix(const char* user) const { return fmt::format("{}/{}", user, world.start); }
};

KeyStore::KeyStore(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {}
KeyStore::~KeyStore() = default;

std::unique_ptr<KeyStore> KeyStore::open(const World& world, std::chrono::milliseconds timeout,
                                         WaitNotes& notes) {
  silence_libtorch();
  StorePtr server = serves_store(world) ? serve(world) : StorePtr();
  const StorePtr tcp = connect(world, timeout, notes);
  if (tcp == nullptr) {
    const Obstacle obstacle = find_obstacle(world);
    fail("rank {} of {} does not reach {} within {} s: {}; {}", world.rank, world.size,
         serves_store(world) ? "itself" : store_name(world),
         std::chrono::duration<double>(timeout).count(), obstacle.what, obstacle.remedy);
  }
  return std::unique_ptr<KeyStore>(
      new KeyStore(std::make_unique<Connection>(world, timeout, std::move(server), tcp)));
}

std::unique_ptr<KeyStore> KeyStore::connect_again() const {
  const World& world = connection_->world;
  WaitNotes silent({});
  const StorePtr tcp = connect(world, connection_->timeout, silent);
  if (tcp == nullptr)
    fail(
        "{} at {}:{} has ended or does not answer; start all ranks again with the same command to "
        "go on",
        store_name(world), world.address, world.port);
  return std::unique_ptr<KeyStore>(
      new KeyStore(std::make_unique<Connection>(world, connection_->timeout, StorePtr(), tcp)));
}

template <typename Body>
auto KeyStore::call(const Body& body) {
  try {
    return body(connection_->ours);
  } catch (const std::exception& e) {
    throw LostStore(fmt::format("{}:{}: {}", connection_->world.address, connection_->world.port,
                                libtorch_reason(e)));
  }
}

void KeyStore::set(const std::string& key, const std::string& text) {
  call([&](c10d::Store& store) { store.set(key, text); });
}

std::string KeyStore::set_first(const std::string& key, const std::string& text) {
  return call([&](c10d::Store& store) { return store.compareSet(key, "", text); });
}

int64_t KeyStore::count(const std::string& key) {
  return call([&](c10d::Store& store) { return store.add(key, 1); });
}

bool KeyStore::has(const std::vector<std::string>& keys) {
  return call([&](c10d::Store& store) { return store.check(keys); });
}

std::vector<std::string> KeyStore::get(const std::vector<std::string>& keys) {
  return call([&](c10d::Store& store) {
    std::vector<std::string> texts;
    for (const auto& bytes : store.multiGet(keys)) texts.emplace_back(bytes.begin(), bytes.end());
    return texts;
  });
}

const c10::intrusive_ptr<c10d::Store>& KeyStore::c10d_store() const {
  return connection_->libtorchs;
}

}  // namespace aqhost
