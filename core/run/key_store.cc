#include "run/key_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
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

/// Serves the store, or tries for at most `timeout` to reach it.
StorePtr open_tcp_store(const World& world, bool serve, std::chrono::milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = world.port;
  options.isServer = serve;
  options.waitWorkers = false;
  options.timeout = std::min<std::chrono::milliseconds>(timeout, std::chrono::seconds(2));
  for (const Clock::time_point latest = Clock::now() + timeout;;) {
    check_interrupt();
    try {
      auto store = c10::make_intrusive<c10d::TCPStore>(world.address, options);
      store->setTimeout(timeout);
      return store;
    } catch (const std::exception&) {
      if (serve || Clock::now() >= latest) throw;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
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
  StorePtr tcp;
  c10d::PrefixStore ours;
  StorePtr libtorchs;

  Connection(const World& of_world, std::chrono::milliseconds of_timeout, bool serve)
      : world(of_world),
        timeout(of_timeout),
        tcp(open_tcp_store(of_world, serve, of_timeout)),
        ours(prefix("aqhost"), tcp),
        libtorchs(c10::make_intrusive<c10d::PrefixStore>(prefix("c10d"), tcp)) {}

  std::string prefix(const char* user) const { return fmt::format("{}/{}", user, world.start); }
};

KeyStore::KeyStore(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {}
KeyStore::~KeyStore() = default;

std::unique_ptr<KeyStore> KeyStore::open(const World& world, std::chrono::milliseconds timeout) {
  silence_libtorch();
  const bool serve = world.rank == 0 && !world.agent_serves_store;
  try {
    return std::unique_ptr<KeyStore>(
        new KeyStore(std::make_unique<Connection>(world, timeout, serve)));
  } catch (const Interrupted&) {
    throw;
  } catch (const std::exception& e) {
    if (serve)
      fail("rank 0 cannot listen on port {} of {} ({}); set MASTER_PORT to a free port", world.port,
           world.address, libtorch_reason(e));
    fail(
        "rank {} of {} reaches no {} at {}:{} within {} s; check that {} and that MASTER_ADDR "
        "and MASTER_PORT are the same for all ranks",
        world.rank, world.size, world.agent_serves_store ? "store of torchrun" : "rank 0",
        world.address, world.port, std::chrono::duration<double>(timeout).count(),
        world.agent_serves_store ? "torchrun runs" : "rank 0 runs");
  }
}

std::unique_ptr<KeyStore> KeyStore::connect_again() const {
  try {
    return std::unique_ptr<KeyStore>(new KeyStore(
        std::make_unique<Connection>(connection_->world, connection_->timeout, false)));
  } catch (const std::exception& e) {
    fail(
        "{} at {}:{} has ended or does not answer ({}); start all ranks again with the same "
        "command "
        "to go on",
        connection_->world.agent_serves_store ? "the store of torchrun" : "rank 0",
        connection_->world.address, connection_->world.port, libtorch_reason(e));
  }
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
