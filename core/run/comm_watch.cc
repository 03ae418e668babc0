#include "run/comm_watch.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/interrupt.h"

namespace aqhost {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// What a rank says of itself in its pulse.
enum class Phase : char { kRuns = 'r', kKnowsLoss = 'k', kEnded = 'e', kFailed = 'f' };

constexpr char kReasonKey[] = "reason";
constexpr milliseconds kStoreAnswers{3000};  // a store that lives answers within this time
constexpr milliseconds kLeastInterval{20};   // between two pulses, however often stations change

std::string pulse_key(int rank) { return fmt::format("pulse/{}", rank); }

std::string pulse_text(uint64_t count, Phase phase, const std::string& station) {
  return fmt::format("{} {} {}", static_cast<char>(phase), count, station);
}

/// A rank that is lost (-1: all of them), and the sentence that says so.
struct Loss {
  int rank = -1;
  std::string message;
};

std::string encode(const Loss& loss) { return fmt::format("{} {}", loss.rank, loss.message); }

Loss decode(const std::string& text) {
  const std::size_t space = std::min(text.find(' '), text.size() - 1);
  return {std::atoi(text.c_str()), text.substr(space + 1)};
}

struct Peer {
  std::string pulse;
  Phase phase = Phase::kRuns;
  std::string station;
  Clock::time_point changed = Clock::now();  // when `pulse` was seen to change
};

}  // namespace

/// What the threads share. The thread of the pulse keeps it alive if it outlives the CommWatch.
struct CommWatch::State {
  const World world;
  const std::unique_ptr<KeyStore> store;  // used by the thread of the pulse alone
  const Times times;
  const milliseconds interval;  // of the pulse

  std::mutex mutex;  // for everything below, but `lost`
  std::condition_variable changed;
  std::string station = "start";
  Phase phase = Phase::kRuns;
  std::vector<Peer> peers;
  Clock::time_point answered = Clock::now();  // when the store last answered
  uint64_t wanted_pulses = 0, made_pulses = 0;
  bool stop = false, pulse_ended = false;

  std::string failure;    // see announce_failure()
  std::string suspicion;  // an encoded Loss that is to be kept in the store
  Clock::time_point suspected;
  std::atomic<bool> lost = false;
  Loss loss;
  Clock::time_point lost_since;
  bool acknowledged = false;
  std::function<void()> abort;
  bool is_aborting = false;  // `abort` runs

  std::thread pulse, guard;

  State(const World& of_world, std::unique_ptr<KeyStore> of_store, const Times& of_times)
      : world(of_world),
        store(std::move(of_store)),
        times(of_times),
        interval(std::clamp(of_times.silence / 5, kLeastInterval, milliseconds(1000))),
        peers(static_cast<std::size_t>(of_world.size)) {}

  using Lock = std::unique_lock<std::mutex>;

  bool serves_store() const { return world.rank == 0 && !world.agent_serves_store; }
  std::string last_station(int rank) const;
  Loss silent(int rank) const;
  Loss store_gone(const char* how) const;
  Loss closed(int rank) const;
  Loss disconnected(int peer, const std::string& reason) const;
  Loss failed(const std::string& message) const {
    return {world.rank, fmt::format("rank {} of {} failed: {}", world.rank, world.size, message)};
  }

  // The functions below need the lock.
  void suspect(const Loss& found);
  void lose(const Loss& found);
  [[noreturn]] void acknowledge_and_throw();
  void want_pulse();
  bool wait_for_pulse(Lock& lock, milliseconds longest);
  bool is_silent(const Peer& peer) const { return answered - peer.changed > times.silence; }
  void wait_for_others(Lock& lock, Clock::time_point latest);
  void take_pulses(const std::vector<std::string>& texts);
  void look_for_silence(Clock::time_point now);
  void act_on_loss(Lock& lock, Clock::time_point now);
  void investigate(Lock& lock, int peer, const std::string& reason);

  void run_pulse();
  void beat(Lock& lock, uint64_t count);
  void run_guard();
};

std::string CommWatch::State::last_station(int rank) const {
  const std::string& last = peers[static_cast<std::size_t>(rank)].station;
  return fmt::format("(it was last in: {}); start all ranks again with the same command to go on",
                     last.empty() ? "start" : last);
}

Loss CommWatch::State::silent(int rank) const {
  return {rank,
          fmt::format("rank {} of {} has not answered for {} s {}", rank, world.size,
                      std::chrono::duration<double>(times.silence).count(), last_station(rank))};
}

Loss CommWatch::State::closed(int rank) const {
  if (peers[static_cast<std::size_t>(rank)].phase == Phase::kEnded)
    return {rank, fmt::format("rank {} of {} has ended while rank {} (in: {}) still needs it", rank,
                              world.size, world.rank, station)};
  return {rank, fmt::format("rank {} of {} has ended without a message, as if it was killed {}",
                            rank, world.size, last_station(rank))};
}

Loss CommWatch::State::disconnected(int peer, const std::string& reason) const {
  return {-1, fmt::format("rank {} of {} has lost its connection to {} ({}); start all ranks again "
                          "with the same command to go on",
                          world.rank, world.size,
                          peer < 0 ? "the others" : fmt::format("rank {}", peer), reason)};
}

/// `how`: "has ended" or "does not answer"
Loss CommWatch::State::store_gone(const char* how) const {
  return {-1, fmt::format("the store of torchrun at {}:{} {}; start all ranks again with the same "
                          "command to go on",
                          world.address, world.port, how)};
}

void CommWatch::State::want_pulse() {
  wanted_pulses++;
  changed.notify_all();
}

void CommWatch::State::suspect(const Loss& found) {
  if (lost || !suspicion.empty()) return;
  suspicion = encode(found);
  suspected = Clock::now();
  want_pulse();
}

void CommWatch::State::lose(const Loss& found) {
  if (lost) return;
  loss = found;
  if (found.rank == world.rank && phase == Phase::kRuns)
    loss.message =
        failure.empty() ? "the other ranks have given this one up: " + found.message : failure;
  lost_since = Clock::now();
  lost = true;
  if (phase == Phase::kRuns) phase = Phase::kKnowsLoss;
  want_pulse();
}

void CommWatch::State::acknowledge_and_throw() {
  acknowledged = true;
  check_interrupt();  // a signal that stops all ranks is not a failure of the others
  throw Error(loss.message);
}

bool CommWatch::State::wait_for_pulse(Lock& lock, milliseconds longest) {
  want_pulse();
  return changed.wait_for(lock, longest, [this, wanted = wanted_pulses] {
    return made_pulses >= wanted || pulse_ended;
  });
}

/// Waits until every other rank has ended, or knows why the run fails, or is lost or silent.
void CommWatch::State::wait_for_others(Lock& lock, Clock::time_point latest) {
  const auto is_done = [this](const Peer& peer) {
    const int rank = static_cast<int>(&peer - peers.data());
    return rank == world.rank || peer.phase != Phase::kRuns || is_silent(peer) ||
           (lost && rank == loss.rank);
  };
  while (!pulse_ended && !std::all_of(peers.begin(), peers.end(), is_done) &&
         Clock::now() < latest) {
    changed.wait_for(lock, kLeastInterval);
    wait_for_pulse(lock, kStoreAnswers);
  }
}

void CommWatch::State::take_pulses(const std::vector<std::string>& texts) {
  answered = Clock::now();
  for (std::size_t i = 0; i < peers.size(); i++) {
    if (texts[i] == peers[i].pulse) continue;
    peers[i].pulse = texts[i];
    peers[i].changed = answered;
    peers[i].phase = static_cast<Phase>(texts[i].front());
    peers[i].station = texts[i].substr(texts[i].find(' ', 2) + 1);
  }
  if (!texts.back().empty()) lose(decode(texts.back()));
}

void CommWatch::State::beat(Lock& lock, uint64_t count) {
  const uint64_t wanted = wanted_pulses;
  const std::string own = pulse_text(count, phase, station), reason = suspicion;
  std::vector<std::string> keys;
  for (int rank = 0; rank < world.size; rank++) keys.push_back(pulse_key(rank));
  keys.emplace_back(kReasonKey);
  lock.unlock();
  std::vector<std::string> texts;
  try {
    if (!reason.empty()) store->set_first(kReasonKey, reason);
    store->set(pulse_key(world.rank), own);
    texts = store->get(keys);
  } catch (...) {
    lock.lock();
    throw;
  }
  lock.lock();
  take_pulses(texts);
  made_pulses = wanted;
  changed.notify_all();
}

void CommWatch::State::run_pulse() {
  Lock lock(mutex);
  try {
    for (uint64_t count = 1; !stop; count++) {
      beat(lock, count);
      changed.wait_for(lock, kLeastInterval, [&] { return stop; });
      changed.wait_for(lock, interval, [&] { return stop || wanted_pulses != made_pulses; });
    }
  } catch (const Error&) {
    if (phase == Phase::kRuns) lose(world.agent_serves_store ? store_gone("has ended") : closed(0));
  }
  pulse_ended = true;
  changed.notify_all();
}

void CommWatch::State::look_for_silence(Clock::time_point now) {
  if (lost || phase != Phase::kRuns) return;
  if (now - answered > times.silence)
    return lose(world.agent_serves_store ? store_gone("does not answer") : silent(0));
  for (int rank = 0; rank < world.size; rank++) {
    const Peer& peer = peers[static_cast<std::size_t>(rank)];
    if (rank != world.rank && peer.phase == Phase::kRuns && is_silent(peer)) suspect(silent(rank));
  }
  if (!suspicion.empty() && now - suspected > kStoreAnswers) lose(decode(suspicion));
}

void CommWatch::State::act_on_loss(Lock& lock, Clock::time_point now) {
  if (!lost) return;
  if (const std::function<void()> once = std::exchange(abort, nullptr)) {
    is_aborting = true;
    lock.unlock();
    once();
    lock.lock();
    is_aborting = false;
    changed.notify_all();
  }
  if (acknowledged || phase != Phase::kKnowsLoss || now - lost_since <= times.grace) return;
  std::fputs(("aqhost: " + loss.message + "\n").c_str(), stderr);
  phase = Phase::kFailed;
  wait_for_pulse(lock, kStoreAnswers);
  ::_exit(1);
}

void CommWatch::State::run_guard() {
  const milliseconds tick = std::clamp(times.silence / 20, milliseconds(5), milliseconds(100));
  Lock lock(mutex);
  for (Clock::time_point now = Clock::now(), before = now; !stop; before = now) {
    changed.wait_for(lock, tick);
    now = Clock::now();
    if (now - before > times.silence / 2) {  // it was this process that stood still
      answered = now;
      for (Peer& peer : peers) peer.changed = now;
    }
    look_for_silence(now);
    act_on_loss(lock, now);
  }
}

void CommWatch::announce(const World& world, KeyStore& store) {
  store.set_first(kReasonKey, "");
  store.set(pulse_key(world.rank), pulse_text(0, Phase::kRuns, "start"));
}

std::string CommWatch::keep_reason(KeyStore& store, const std::string& message) {
  return decode(store.set_first(kReasonKey, encode({-1, message}))).message;
}

std::string CommWatch::reason(KeyStore& store) {
  const std::string text = store.get({kReasonKey}).front();
  return text.empty() ? "" : decode(text).message;
}

CommWatch::CommWatch(const World& world, std::unique_ptr<KeyStore> store, const Times& times)
    : state_(std::make_shared<State>(world, std::move(store), times)) {
  state_->pulse = std::thread([state = state_] { state->run_pulse(); });
  state_->guard = std::thread([state = state_.get()] { state->run_guard(); });
}

CommWatch::~CommWatch() {
  {
    State::Lock lock(state_->mutex);
    state_->stop = true;
    state_->changed.notify_all();
  }
  state_->guard.join();
  State::Lock lock(state_->mutex);
  const bool ended =
      state_->changed.wait_for(lock, kStoreAnswers / 3, [this] { return state_->pulse_ended; });
  lock.unlock();
  if (ended)
    state_->pulse.join();
  else
    state_->pulse.detach();  // the store's process has stopped; no call to it can be interrupted
}

void CommWatch::station(const std::string& name) {
  const State::Lock lock(state_->mutex);
  state_->station = name;
  state_->want_pulse();
}

bool CommWatch::is_lost() const { return state_->lost; }

void CommWatch::check() const {
  if (!state_->lost) return;
  const State::Lock lock(state_->mutex);
  state_->acknowledge_and_throw();
}

/// Finds out why a connection to `peer` (-1: an unknown rank) has failed, so that then a rank is
/// lost, unless this process or `peer` has ended.
void CommWatch::State::investigate(Lock& lock, int peer, const std::string& reason) {
  const auto over = [&] { return lost || phase == Phase::kEnded || phase == Phase::kFailed; };
  // A rank that fails says why before it closes its connections: the next answer has it.
  want_pulse();
  changed.wait_for(lock, times.silence + kStoreAnswers, [&, wanted = wanted_pulses] {
    return over() || pulse_ended || made_pulses >= wanted;
  });
  bool lives = false;
  if (peer < 0) {
    changed.wait_for(lock, times.silence + kStoreAnswers, over);
  } else {
    const Peer& other = peers[static_cast<std::size_t>(peer)];
    const std::string last = other.pulse;
    changed.wait_for(lock, 3 * interval,
                     [&] { return over() || other.phase == Phase::kEnded || other.pulse != last; });
    lives = other.phase != Phase::kEnded && other.pulse != last;
  }
  if (!over()) suspect(peer >= 0 && !lives ? closed(peer) : disconnected(peer, reason));
  changed.wait_for(lock, kStoreAnswers, over);
  if (!over()) lose(decode(suspicion));
}

void CommWatch::broken(int peer, const std::string& reason) {
  State::Lock lock(state_->mutex);
  state_->investigate(lock, peer, reason);
  if (!state_->lost) state_->lose(state_->disconnected(peer, reason));
  state_->acknowledge_and_throw();
}

void CommWatch::closed(int peer, const std::string& reason) {
  State::Lock lock(state_->mutex);
  const Peer& other = state_->peers[static_cast<std::size_t>(peer)];
  state_->wait_for_pulse(lock, kStoreAnswers);
  if (other.phase != Phase::kEnded) state_->investigate(lock, peer, reason);
}

void CommWatch::on_loss(std::function<void()> abort) {
  State::Lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return !state_->is_aborting; });
  state_->abort = std::move(abort);
  state_->changed.notify_all();
}

void CommWatch::announce_failure(const std::string& message) {
  const State::Lock lock(state_->mutex);
  if (state_->lost || state_->phase != Phase::kRuns) return;
  state_->failure = message;
  state_->suspect(state_->failed(message));
}

std::string CommWatch::lost_rank_message() const {
  const State::Lock lock(state_->mutex);
  return state_->lost ? state_->loss.message : "";
}

void CommWatch::end() {
  State::Lock lock(state_->mutex);
  state_->phase = Phase::kEnded;
  state_->wait_for_pulse(lock, kStoreAnswers);
  if (state_->serves_store()) state_->wait_for_others(lock, Clock::time_point::max());
}

void CommWatch::fail_with(const std::string& message) {
  State::Lock lock(state_->mutex);
  state_->phase = Phase::kFailed;
  state_->suspect(state_->failed(message));
  state_->wait_for_pulse(lock, kStoreAnswers);
  if (state_->serves_store()) state_->wait_for_others(lock, Clock::now() + kStoreAnswers);
}

}  // namespace aqhost
