#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/interrupt.h"
#include "run/comm.h"
#include "run/comm_link.h"
#include "run/comm_watch.h"

namespace aqhost {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPoll{50}, kTell{5000};

std::string joined_key(int rank) { return fmt::format("joined/{}", rank); }
std::string told_key(int rank) { return fmt::format("told/{}", rank); }

/// Returns the keys of all ranks.
std::vector<std::string> all_keys(const World& world, std::string (*key)(int rank)) {
  std::vector<std::string> keys;
  for (int rank = 0; rank < world.size; rank++) keys.push_back(key(rank));
  return keys;
}

/// Ends the start of a run on all ranks, for the first reason that one of them had, which this
/// returns. The others read it in the store, which ends with rank 0; so rank 0 waits until they all
/// have, or for at most `longest`.
std::string end_start(const World& world, KeyStore& store, const std::string& message,
                      std::chrono::milliseconds longest = kTell) {
  const std::string reason = CommWatch::keep_reason(store, message);
  try {
    store.set(told_key(world.rank), "");
    if (world.rank != 0 || world.agent_serves_store) return reason;
    const Clock::time_point latest = Clock::now() + longest;
    while (Clock::now() < latest && !store.has(all_keys(world, told_key)))
      std::this_thread::sleep_for(kPoll);
  } catch (const LostStore&) {  // the reason is known already
  }
  return reason;
}

[[noreturn]] void give_up(const World& world, KeyStore& store, const std::string& message,
                          std::chrono::milliseconds longest = kTell) {
  throw Error(end_start(world, store, message, longest));
}

/// Tells the others that this rank has failed, if the store is still there.
void tell(const World& world, KeyStore& store, const std::string& message) {
  try {
    end_start(world, store,
              fmt::format("rank {} of {} failed: {}", world.rank, world.size, message));
  } catch (const std::exception&) {  // there is nobody to tell, or a signal came
  }
}

constexpr char kMetKey[] = "met";  // exists when all ranks have met

/// Throws an Error if a run whose ranks have all met uses the store. A process that comes after
/// them, such as one of another run with the same MASTER_PORT, must not end that run.
void require_no_run(const World& world, KeyStore& store) {
  if (store.has({kMetKey}))
    fail(
        "a run whose processes have all started uses {}:{}; to begin another one beside it, set "
        "MASTER_PORT to another port; to replace one of its processes, start all of them again",
        world.address, world.port);
}

/// Throws an Error if this process does not fit together with those that came before it.
void require_one_world(const World& world, KeyStore& store) {
  const std::string size = store.set_first("size", std::to_string(world.size));
  if (size != std::to_string(world.size))
    give_up(world, store,
            fmt::format("rank {} was started as one of {} processes, but another one as one of {}: "
                        "expected the same WORLD_SIZE for all",
                        world.rank, world.size, size));
  if (store.count(fmt::format("rank/{}", world.rank)) > 1)
    give_up(world, store,
            fmt::format("two processes were started as rank {} of {}: expected a different RANK "
                        "for each",
                        world.rank, world.size));
}

/// The ranks that have not joined.
std::vector<int> missing_ranks(const World& world, KeyStore& store) {
  std::vector<int> missing;
  for (int rank = 0; rank < world.size; rank++)
    if (!store.has({joined_key(rank)})) missing.push_back(rank);
  return missing;
}

/// The sentence that says for which ranks this one waits; "" if a lower rank says it.
std::string missing_text(const World& world, KeyStore& store) {
  const std::vector<int> missing = missing_ranks(world, store);
  if (missing.empty()) return {};
  for (int rank = 0; rank < world.rank; rank++)
    if (std::find(missing.begin(), missing.end(), rank) == missing.end()) return {};
  if (missing.size() == 1)
    return fmt::format("waiting for rank {} of {} to start", missing.front(), world.size);
  return fmt::format("waiting for ranks {} and {} of {} to start",
                     fmt::join(missing.begin(), missing.end() - 1, ", "), missing.back(),
                     world.size);
}

/// Returns when all ranks have called it.
void meet(const World& world, KeyStore& store, std::chrono::milliseconds timeout,
          WaitNotes& notes) {
  require_no_run(world, store);
  CommWatch::announce(world, store);
  require_one_world(world, store);
  store.set(joined_key(world.rank), "");
  const std::vector<std::string> all = all_keys(world, joined_key);
  const Clock::time_point latest = Clock::now() + timeout;
  for (;;) {
    check_interrupt();
    if (const std::string reason = CommWatch::reason(store); !reason.empty())
      give_up(world, store, reason);
    if (store.has(all)) {
      store.set(kMetKey, "");
      return;
    }
    if (Clock::now() > latest)
      give_up(world, store,
              fmt::format("of {} processes, these did not start within {} s: rank {}; start one "
                          "for each rank, all with the same MASTER_ADDR and MASTER_PORT",
                          world.size, std::chrono::duration<double>(timeout).count(),
                          fmt::join(missing_ranks(world, store), ", ")),
              20 * kPoll);  // the ranks that are there read it at once
    notes.waits_for([&] { return missing_text(world, store); });
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace

std::unique_ptr<Comm> Comm::join(const World& world, at::Device device, const CommTimes& times,
                                 WaitNotes::Inform inform) {
  if (world.size == 1) return alone();
  WaitNotes notes(std::move(inform));
  std::shared_ptr<KeyStore> store = KeyStore::open(world, times.join, notes);
  try {
    meet(world, *store, times.join, notes);
  } catch (const Interrupted&) {
    tell(world, *store, "a signal interrupted it");
    throw;
  } catch (const LostStore&) {
    fail("{} has ended before all of the {} ranks had started",
         world.agent_serves_store ? "the store of torchrun" : "rank 0", world.size);
  }
  std::unique_ptr<Comm> comm(new Comm(world.rank, world.size));
  comm->store_ = store;
  comm->watch_ = std::make_unique<CommWatch>(world, store->connect_again(),
                                             CommWatch::Times{times.silence, times.grace});
  try {
    comm->connect(world, device, times.join);
  } catch (const Error& e) {
    comm->fail_with(e.what());
    throw;
  }
  return comm;
}

void Comm::report_failure(const World& world, const std::string& message) noexcept {
  if (world.size == 1) return;
  try {
    WaitNotes silent({});
    const std::unique_ptr<KeyStore> store = KeyStore::open(world, kTell, silent);
    require_no_run(world, *store);
    require_one_world(world, *store);
    tell(world, *store, message);
  } catch (const std::exception&) {  // there is nobody to tell
  }
}

void Comm::connect(const World& world, at::Device device, std::chrono::milliseconds timeout) {
  run_call([&] {
    try {
      cpu_link_ = connect_gloo(world, *store_, timeout,
                               [watch = watch_.get()](int peer, const std::string& reason) {
                                 watch->closed(peer, reason);
                               });
      watch_->on_loss([link = cpu_link_.get()] { link->abort(); });
      if (!device.is_cpu())
        gpu_link_ = connect_nccl(world, *store_, device, timeout,
                                 [watch = watch_.get()] { return watch->is_lost(); });
    } catch (const LostStore& e) {
      throw BrokenLink(-1, e.what());
    }
  });
  barrier();
}

}  // namespace aqhost
