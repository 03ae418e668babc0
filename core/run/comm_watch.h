#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "run/key_store.h"
#include "run/world.h"

namespace aqhost {

/// Tells the other ranks that this one lives and what it does, and notices when another does not.
///
/// One thread writes this rank's pulse to the store and reads the others'. Because a store whose
/// process has stopped never answers, a second thread keeps the time. The first reason for which a
/// rank is lost is kept in the store, so that all ranks give the same one.
///
/// The functions can be called by any thread.
class CommWatch {
 public:
  struct Times {
    std::chrono::milliseconds silence;  // after which a rank is lost
    std::chrono::milliseconds grace;    // to acknowledge a loss before this process is ended
  };

  /// The keys that every rank must have set before any rank makes a CommWatch, by announce().
  static void announce(const World& world, KeyStore& store);
  /// Keeps `message` as the reason for which the run fails, unless there is one. Returns the
  /// reason.
  static std::string keep_reason(KeyStore& store, const std::string& message);
  /// The reason for which the run fails, as announce() and keep_reason() left it; "" if there is
  /// none.
  static std::string reason(KeyStore& store);

  /// Starts the threads. `store` is a connection that nothing else uses.
  CommWatch(const World& world, std::unique_ptr<KeyStore> store, const Times& times);
  /// Stops them.
  ~CommWatch();
  CommWatch(const CommWatch&) = delete;
  CommWatch& operator=(const CommWatch&) = delete;

  /// What this rank does.
  void station(const std::string& name);

  /// Whether a rank is lost. Cheap.
  bool is_lost() const;
  /// Throws the Error that says which rank is lost, if one is. The loss counts as acknowledged.
  void check() const;
  /// A connection to `peer` (-1: to an unknown rank) has failed because of `reason`. Finds out why,
  /// for which it may wait as long as a rank may be silent, and throws the Error.
  [[noreturn]] void broken(int peer, const std::string& reason);

  /// The connection to `peer` is closed, though no call needs it now. Unless `peer` has ended well,
  /// it is lost when this returns.
  void closed(int peer, const std::string& reason);

  /// `abort` is called once, by the thread that keeps the time, when a rank is lost, or at once if
  /// one is lost already. It makes this process's calls that wait fail. The function that was set
  /// before does not run any more after this returns.
  void on_loss(std::function<void()> abort);

  /// This rank is about to fail because of `message`: it is lost for the others, and check() and
  /// broken() throw an Error with this message here.
  void announce_failure(const std::string& message);
  /// The sentence that says which rank is lost; "" if none is.
  std::string lost_rank_message() const;

  /// This rank ends well, or because of an error. Both return when the others can know; on the rank
  /// that serves the store, when all others have ended or know it, or do not answer.
  void end();
  void fail_with(const std::string& message);

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

}  // namespace aqhost
