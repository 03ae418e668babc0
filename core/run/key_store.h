#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "run/wait_notes.h"
#include "run/world.h"

namespace c10d {
class Store;
}

namespace aqhost {

/// What c10d says about an error: its first line, without a stack trace.
std::string libtorch_reason(const std::exception& error);

/// The store's process has ended.
class LostStore : public Error {
 public:
  using Error::Error;
};

/// A connection to the store at which the ranks of a run meet: short texts by key (c10d's
/// TCPStore). Thread-safe, but a call waits for another thread's call. If the store's process has
/// ended, a call throws LostStore; if it has stopped, a call may never return.
class KeyStore {
 public:
  /// Connects to the store, which rank 0 serves itself unless torchrun does, for as long as this
  /// object or its link's exists. Throws an Error that says which port is taken, or, after
  /// `timeout`, that the host's name is unknown, that nobody listens, or that another program does.
  /// `notes` tells the user the same during the wait.
  static std::unique_ptr<KeyStore> open(const World& world, std::chrono::milliseconds timeout,
                                        WaitNotes& notes);
  ~KeyStore();
  KeyStore(const KeyStore&) = delete;
  KeyStore& operator=(const KeyStore&) = delete;

  /// Another connection to the same store, which does not serve it.
  std::unique_ptr<KeyStore> connect_again() const;

  void set(const std::string& key, const std::string& text);
  /// Sets a key that does not exist or is empty. Returns what the key has now.
  std::string set_first(const std::string& key, const std::string& text);
  /// Counts the calls for this key, this one included.
  int64_t count(const std::string& key);
  bool has(const std::vector<std::string>& keys);
  /// Waits for all keys to exist, for as long as the timeout of open().
  std::vector<std::string> get(const std::vector<std::string>& keys);

  /// The store as LibTorch takes it, with keys apart from this class's.
  const c10::intrusive_ptr<c10d::Store>& c10d_store() const;

 private:
  struct Connection;
  explicit KeyStore(std::unique_ptr<Connection> connection);
  template <typename Body>
  auto call(const Body& body);

  std::unique_ptr<Connection> connection_;
};

}  // namespace aqhost
