// One rank of a run over several processes, for test_comm.py:
//   comm_rank SCENARIO [ARGUMENT]
// where the environment says which rank it is. The comment of each scenario says what it does. With
// AQ_TEST_GPUS, each rank has its tensors on the GPU LOCAL_RANK.

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <thread>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/sha256.h"
#include "run/comm.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

using Tensors = std::vector<at::Tensor>;

at::Device g_device = at::kCPU;

/// Numbers whose sum depends on the order in which they are added, the same in every process.
at::Tensor numbers(int rank, int64_t seed, at::IntArrayRef shape, at::ScalarType type) {
  int64_t count = 1;
  for (const int64_t n : shape) count *= n;
  const at::Tensor mixed = at::arange(count, at::kInt).mul_(-1640531535).add_(rank * 977 + seed);
  return mixed.to(type).div_(3).view(shape);
}

void require(bool holds, const std::string& what) {
  if (!holds) fail("wrong result: {}", what);
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.cpu(), y = b.cpu();
  return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() &&
         std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

/// What one process would get: the sum over all ranks' numbers, in the order of ranks.
at::Tensor sum_of_all(int size, int64_t seed, at::IntArrayRef shape, at::ScalarType type) {
  at::Tensor total = numbers(0, seed, shape, type);
  for (int rank = 1; rank < size; rank++) total = total + numbers(rank, seed, shape, type);
  return total;
}

int64_t bytes_at(const Comm& comm, const std::string& station) {
  for (const StationTraffic& traffic : comm.traffic())
    if (traffic.station == station) return traffic.bytes;
  return 0;
}

struct Job {
  std::vector<int64_t> shape;
  at::ScalarType type;
  int owner;
};

/// Tensors of all sizes: empty, one element, of an odd size in bytes, more than a step (16 MiB).
std::vector<Job> jobs(int size) {
  std::vector<Job> jobs;
  for (int i = 0; i < 20; i++) jobs.push_back({{3 + i, 5}, at::kFloat, (i * 3) % size});
  jobs.push_back({{0, 4}, at::kFloat, 0});
  jobs.push_back({{1}, at::kFloat, size - 1});
  jobs.push_back({{7}, at::kBFloat16, size - 1});
  jobs.push_back({{11}, at::kDouble, size - 1});
  jobs.push_back({{2100, 2100}, at::kFloat, size - 1});
  jobs.push_back({{2100, 2100}, at::kFloat, 0});
  jobs.push_back({{1000, 33}, at::kFloat, size - 1});
  return jobs;
}

void test_reduce(Comm& comm) {
  comm.station("reduce");
  Tensors tensors;
  std::vector<int> owners;
  int64_t floor = 0;
  for (const Job& job : jobs(comm.size())) {
    const auto seed = static_cast<int64_t>(tensors.size());
    tensors.push_back(numbers(comm.rank(), seed, job.shape, job.type).to(g_device));
    owners.push_back(job.owner);
    if (job.owner != comm.rank()) floor += static_cast<int64_t>(tensors.back().nbytes());
  }
  comm.reduce(tensors, owners);
  for (std::size_t i = 0; i < tensors.size(); i++) {
    const Job job = jobs(comm.size())[i];
    const auto seed = static_cast<int64_t>(i);
    const at::Tensor expected = job.owner == comm.rank()
                                    ? sum_of_all(comm.size(), seed, job.shape, job.type)
                                    : numbers(comm.rank(), seed, job.shape, job.type);
    require(same_bytes(tensors[i], expected), fmt::format("reduce, tensor {}", i));
  }
  require(bytes_at(comm, "reduce") == floor, "reduce sends each tensor once");
}

void test_share(Comm& comm) {
  comm.station("share");
  Tensors tensors;
  std::vector<int> owners;
  int64_t floor = 0;
  for (const Job& job : jobs(comm.size())) {
    const auto seed = static_cast<int64_t>(tensors.size());
    const bool owned = job.owner == comm.rank();
    tensors.push_back(
        (owned ? numbers(job.owner, seed, job.shape, job.type) : at::zeros(job.shape, job.type))
            .to(g_device));
    owners.push_back(job.owner);
    if (owned) floor += static_cast<int64_t>(tensors.back().nbytes()) * (comm.size() - 1);
  }
  comm.share(tensors, owners);
  for (std::size_t i = 0; i < tensors.size(); i++) {
    const Job job = jobs(comm.size())[i];
    require(
        same_bytes(tensors[i], numbers(job.owner, static_cast<int64_t>(i), job.shape, job.type)),
        fmt::format("share, tensor {}", i));
  }
  require(bytes_at(comm, "share") == floor, "share sends each tensor to each rank once");
}

void test_small_calls(Comm& comm) {
  comm.station("small calls");
  const auto text_of = [](int rank) {
    return std::string(static_cast<std::size_t>(rank * 1000), 'x') + std::string("a\0b", 3);
  };
  const std::vector<std::string> texts = comm.all_gather(text_of(comm.rank()));
  require(static_cast<int>(texts.size()) == comm.size(), "all_gather returns a text per rank");
  for (int rank = 0; rank < comm.size(); rank++)
    require(texts[static_cast<std::size_t>(rank)] == text_of(rank), "all_gather");
  const auto empty = comm.all_gather(comm.rank() == 0 ? "not empty" : "");
  require(empty.front() == "not empty" && (comm.size() == 1 || empty.back().empty()),
          "all_gather of empty texts");

  at::Tensor tensor = numbers(comm.rank(), 5, {6, 7}, at::kFloat).to(g_device);
  comm.broadcast(tensor, comm.size() - 1);
  require(same_bytes(tensor, numbers(comm.size() - 1, 5, {6, 7}, at::kFloat)), "broadcast");

  at::Tensor total = numbers(comm.rank(), 9, {4, 3}, at::kDouble);
  comm.sum(total);
  require(same_bytes(total, sum_of_all(comm.size(), 9, {4, 3}, at::kDouble)), "sum");
  at::Tensor counts = at::full({2}, comm.rank() + 1, at::kLong);
  comm.sum(counts);
  require(counts[1].item<int64_t>() == comm.size() * (comm.size() + 1) / 2, "sum of integers");
  at::Tensor most = at::full({2}, comm.rank() * (comm.rank() % 2 == 0 ? 1.5 : -1.5), at::kDouble);
  comm.maximum(most);
  require(most[0].item<double>() == 1.5 * ((comm.size() - 1) / 2 * 2), "maximum");
  comm.barrier();
}

/// calls: all calls give what one process would compute, and send no more bytes than necessary.
void calls(Comm& comm, const std::string&) {
  test_reduce(comm);
  test_share(comm);
  test_small_calls(comm);
  fmt::print("ok\n");
}

/// digest: prints the SHA-256 of a sum whose result depends on the order of ranks.
void digest(Comm& comm, const std::string&) {
  Tensors tensors{numbers(comm.rank(), 1, {500, 500}, at::kFloat).to(g_device)};
  comm.reduce(tensors, {0});
  comm.broadcast(tensors[0], 0);
  const at::Tensor sum = tensors[0].cpu();
  fmt::print("{}\n",
             sha256_of({static_cast<const std::byte*>(sum.const_data_ptr()), sum.nbytes()}));
}

void say_ready(Comm& comm, const std::string& station) {
  comm.station(station);
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));  // until the others have seen it
  fmt::print("ready\n");
  std::fflush(stdout);
}

void sleep_long() { std::this_thread::sleep_for(std::chrono::minutes(2)); }

/// stuck RANK: the rank RANK sleeps while the others wait for it in a call.
void stuck(Comm& comm, const std::string& rank) {
  say_ready(comm, "layer 5, solve");
  if (comm.rank() == std::stoi(rank)) sleep_long();
  comm.station("layer 5, reduce");
  comm.barrier();
}

/// busy RANK: the rank RANK sleeps, and the others make no call for a long time either.
void busy(Comm& comm, const std::string&) {
  say_ready(comm, "layer 5, solve");
  sleep_long();
}

/// transfer: all ranks send without end.
void transfer(Comm& comm, const std::string&) {
  say_ready(comm, "layer 7, reduce");
  Tensors tensors;
  std::vector<int> owners;
  for (int rank = 0; rank < comm.size(); rank++) {
    tensors.push_back(numbers(comm.rank(), rank, {3000, 1000}, at::kFloat).to(g_device));
    owners.push_back(rank);
  }
  for (;;) comm.reduce(tensors, owners);
}

/// failing RANK: the rank RANK ends with an Error while the others wait for it.
void failing(Comm& comm, const std::string& rank) {
  comm.station("layer 2, write");
  if (comm.rank() == std::stoi(rank)) fail("the disk is full");
  comm.barrier();
}

/// waits: says that it is ready before it waits for the others to join, and then on stderr for
/// which it waits (see run()).
void waits(Comm&, const std::string&) {}

/// absent MESSAGE: reports that it fails with this message before it has joined (see run()).
void absent(Comm&, const std::string&) {}

/// late: the ranks end one after another, rank 0 first.
void late(Comm& comm, const std::string&) {
  comm.barrier();
  std::this_thread::sleep_for(std::chrono::milliseconds(700 * comm.rank()));
  fmt::print("ok\n");
}

const std::map<std::string, std::function<void(Comm&, const std::string&)>> kScenarios{
    {"calls", calls}, {"digest", digest},     {"stuck", stuck},
    {"busy", busy},   {"transfer", transfer}, {"failing", failing},
    {"waits", waits}, {"absent", absent},     {"late", late}};

void run(const std::string& scenario, const std::string& argument) {
  const World world = world_of_environment();
  if (scenario == "waits") {
    fmt::print("ready\n");
    std::fflush(stdout);
  }
  if (std::getenv("AQ_TEST_GPUS") != nullptr)
    g_device = open_device(fmt::format("cuda:{}", world.local_rank));
  if (scenario == "absent") {
    Comm::report_failure(world, argument);
    fail("{}", argument);
  }
  WaitNotes::Inform inform;
  if (scenario == "waits")
    inform = [](const std::string& text) { fmt::print(stderr, "comm_rank: {}\n", text); };
  const std::unique_ptr<Comm> comm =
      Comm::join(world, g_device, CommTimes::of_environment(), inform);
  try {
    kScenarios.at(scenario)(*comm, argument);
    comm->end();
  } catch (const Error& e) {
    comm->fail_with(e.what());
    throw;
  }
}

}  // namespace
}  // namespace aqhost

int main(int argc, char** argv) {
  aqhost::install_interrupt_handler();
  try {
    aqhost::run(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "");
  } catch (const std::exception& e) {
    std::fputs(fmt::format("comm_rank: {}\n", e.what()).c_str(), stderr);
    return 1;
  }
}
