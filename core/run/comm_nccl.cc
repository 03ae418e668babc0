#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/dll/shared_library.hpp>
#include <cstring>
#include <string>
#include <thread>

#include "base/error.h"
#include "run/comm_link.h"

namespace aqhost {
namespace {
namespace dll = boost::dll;

using Clock = std::chrono::steady_clock;
using Guard = c10::impl::VirtualGuardImpl;

/// What this file uses of NCCL's C interface, as nccl.h declares it since version 2.14
/// (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html). The program is not linked
/// to NCCL, and is compiled where neither NCCL nor CUDA is installed. A stream is a cudaStream_t.
namespace nccl {

using Handle = struct ncclComm*;  // ncclComm_t
struct UniqueId {
  char internal[128];
};
using Result = int;  // ncclResult_t
constexpr Result kSuccess = 0, kInProgress = 7;
constexpr int kBytes = 1;  // ncclUint8
/// The beginning of ncclConfig_t, which NCCL completes with its defaults according to `version`.
struct Config {
  std::size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;
  int blocking = 0;  // 0: calls return at once with kInProgress, so that this program can stop them
};

using GetUniqueId = Result(UniqueId* id);
using CommInitRankConfig = Result(Handle* comm, int size, UniqueId id, int rank, Config* config);
using CommGetAsyncError = Result(Handle comm, Result* state);
using CommFinalize = Result(Handle comm);
using CommDestroy = Result(Handle comm);
using CommAbort = Result(Handle comm);
using GroupStart = Result();
using GroupEnd = Result();
using Send = Result(const void* data, std::size_t count, int type, int peer, Handle comm,
                    void* stream);
using Recv = Result(void* data, std::size_t count, int type, int peer, Handle comm, void* stream);
using GetErrorString = const char*(Result result);

}  // namespace nccl

struct Library {
  dll::shared_library file;
  nccl::GetUniqueId* get_unique_id;
  nccl::CommInitRankConfig* comm_init_rank_config;
  nccl::CommGetAsyncError* comm_get_async_error;
  nccl::CommFinalize* comm_finalize;
  nccl::CommDestroy* comm_destroy;
  nccl::CommAbort* comm_abort;
  nccl::GroupStart* group_start;
  nccl::GroupEnd* group_end;
  nccl::Send* send;
  nccl::Recv* recv;
  nccl::GetErrorString* get_error_string;
};

/// LibTorch's CUDA libraries have loaded NCCL already, which this finds again by its name.
Library open_library() {
  Library library;
  try {
    library.file.load("libnccl.so.2", dll::load_mode::rtld_now | dll::load_mode::rtld_local |
                                          dll::load_mode::search_system_folders);
    library.get_unique_id = &library.file.get<nccl::GetUniqueId>("ncclGetUniqueId");
    library.comm_init_rank_config =
        &library.file.get<nccl::CommInitRankConfig>("ncclCommInitRankConfig");
    library.comm_get_async_error =
        &library.file.get<nccl::CommGetAsyncError>("ncclCommGetAsyncError");
    library.comm_finalize = &library.file.get<nccl::CommFinalize>("ncclCommFinalize");
    library.comm_destroy = &library.file.get<nccl::CommDestroy>("ncclCommDestroy");
    library.comm_abort = &library.file.get<nccl::CommAbort>("ncclCommAbort");
    library.group_start = &library.file.get<nccl::GroupStart>("ncclGroupStart");
    library.group_end = &library.file.get<nccl::GroupEnd>("ncclGroupEnd");
    library.send = &library.file.get<nccl::Send>("ncclSend");
    library.recv = &library.file.get<nccl::Recv>("ncclRecv");
    library.get_error_string = &library.file.get<nccl::GetErrorString>("ncclGetErrorString");
  } catch (const std::exception& e) {
    fail(
        "NCCL, which several processes with GPUs need, does not load ({}): let LD_LIBRARY_PATH "
        "name the folder of libnccl.so.2 of version 2.14 or newer, or use --device cpu",
        e.what());
  }
  return library;
}

const Library& library() {
  static const Library opened = open_library();
  return opened;
}

/// Waits a moment: not at all at first, then longer and longer.
class Patience {
 public:
  void wait() {
    if (turns_++ < 200)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(std::min(turns_ - 200, 200)));
  }

 private:
  int turns_ = 0;
};

/// Messages are enqueued on LibTorch's current stream: its later operations there come after them.
class NcclTransfer : public Transfer {
 public:
  void wait() override {}
};

class NcclLink : public CommLink {
 public:
  NcclLink(const World& world, KeyStore& store, at::Device device,
           std::chrono::milliseconds timeout, std::function<bool()> is_lost)
      : device_(device), is_lost_(std::move(is_lost)) {
    Guard(device_.type()).setDevice(device_);
    nccl::UniqueId id{};
    if (world.rank == 0) {
      check(library().get_unique_id(&id));
      store.set("nccl", std::string(id.internal, sizeof id.internal));
    } else {
      const std::string bytes = store.get({"nccl"}).front();
      std::memcpy(id.internal, bytes.data(), std::min(bytes.size(), sizeof id.internal));
    }
    nccl::Config config;
    try {
      check(library().comm_init_rank_config(&comm_, world.size, id, world.rank, &config));
      settle(Clock::now() + timeout);
    } catch (...) {
      close(false);
      throw;
    }
  }

  ~NcclLink() override { close(!is_broken_ && !is_lost_()); }

  std::unique_ptr<Transfer> start(const std::vector<Message>& sends,
                                  const std::vector<Message>& receives) override {
    void* stream = Guard(device_.type()).getStream(device_).native_handle();
    check(library().group_start());
    nccl::Result result = nccl::kSuccess;
    const auto note = [&](nccl::Result next) {
      if (is_error(next) && !is_error(result)) result = next;
    };
    for (const auto& [tensor, peer] : receives)
      note(library().recv(tensor.data_ptr(), tensor.nbytes(), nccl::kBytes, peer, comm_, stream));
    for (const auto& [tensor, peer] : sends)
      note(library().send(tensor.const_data_ptr(), tensor.nbytes(), nccl::kBytes, peer, comm_,
                          stream));
    note(library().group_end());
    check(result);
    settle(Clock::time_point::max());
    return std::make_unique<NcclTransfer>();
  }

  void finish() override {
    const Guard guard(device_.type());
    const c10::Stream stream = guard.getStream(device_);
    for (Patience patience; !guard.queryStream(stream); patience.wait()) {
      if (is_lost_()) stop("a rank is lost");
      check(state());
    }
    check(state());
  }

  void abort() noexcept override {}  // what waits here asks is_lost_() again and again

 private:
  static bool is_error(nccl::Result result) {
    return result != nccl::kSuccess && result != nccl::kInProgress;
  }

  [[noreturn]] void stop(const std::string& reason) {
    is_broken_ = true;
    close(false);  // ends the kernels that wait for other ranks
    throw BrokenLink(-1, reason);
  }

  void check(nccl::Result result) {
    if (is_error(result)) stop(fmt::format("NCCL: {}", library().get_error_string(result)));
  }

  nccl::Result state() const {
    nccl::Result state = nccl::kSuccess;
    const nccl::Result result = library().comm_get_async_error(comm_, &state);
    return is_error(result) ? result : state;
  }

  /// Waits until NCCL has done in the background what the last call began.
  void settle(Clock::time_point latest) {
    Patience patience;
    for (nccl::Result now = state(); now != nccl::kSuccess; now = state()) {
      check(now);
      if (is_lost_()) stop("a rank is lost");
      if (Clock::now() > latest)
        fail("NCCL has not connected the GPUs in time; NCCL_DEBUG=INFO shows what it tries");
      patience.wait();
    }
  }

  /// `in_peace`: nothing is on its way, and the other ranks close as well.
  void close(bool in_peace) noexcept {
    const nccl::Handle comm = std::exchange(comm_, nullptr);
    if (comm == nullptr) return;
    constexpr std::chrono::seconds kLongest{5};
    nccl::Result now = in_peace ? library().comm_finalize(comm) : nccl::kInProgress;
    const Clock::time_point latest = Clock::now() + kLongest;
    for (Patience patience; in_peace && now == nccl::kInProgress && Clock::now() < latest;
         patience.wait())
      if (library().comm_get_async_error(comm, &now) != nccl::kSuccess) break;
    if (now == nccl::kSuccess)
      library().comm_destroy(comm);
    else
      library().comm_abort(comm);
  }

  const at::Device device_;
  const std::function<bool()> is_lost_;
  nccl::Handle comm_ = nullptr;
  bool is_broken_ = false;
};

}  // namespace

std::unique_ptr<CommLink> connect_nccl(const World& world, KeyStore& store, at::Device device,
                                       std::chrono::milliseconds timeout,
                                       std::function<bool()> is_lost) {
  return std::make_unique<NcclLink>(world, store, device, timeout, std::move(is_lost));
}

}  // namespace aqhost
