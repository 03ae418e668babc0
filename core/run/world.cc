#include "run/world.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "base/error.h"

namespace aqhost {
namespace {

/// A variable of the environment.
struct Variable {
  const char* name;

  bool is_set() const { return std::getenv(name) != nullptr; }

  /// Throws an Error that says that this variable is missing beside `other`.
  std::string text_beside(const char* other) const {
    const char* value = std::getenv(name);
    if (value == nullptr)
      fail(
          "the environment variable {} is set, but {} is not: a run over several processes needs "
          "both; unset {} to run in one process",
          other, name, other);
    if (*value == '\0') fail("the environment variable {} is empty", name);
    return value;
  }

  int integer_beside(const char* other, int minimum, int maximum) const {
    const std::string text = text_beside(other);
    int value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stop != end || value < minimum || value > maximum) {
      constexpr int kMost = std::numeric_limits<int>::max();
      fail("the environment variable {} is \"{}\": expected an integer {}", name, text,
           maximum == kMost ? fmt::format("from {} on", minimum)
                            : fmt::format("from {} to {}", minimum, maximum));
    }
    return value;
  }
};

constexpr int kMostProcesses = 100'000;

/// The names of the variables that hold a process's place.
struct PlaceNames {
  Variable rank, size, local_rank;
};

/// Reads `rank`, `size` and `local_rank`.
World read_place(const PlaceNames& names) {
  World world;
  world.size = names.size.integer_beside(names.rank.name, 1, kMostProcesses);
  world.rank = names.rank.integer_beside(names.size.name, 0, std::numeric_limits<int>::max());
  if (world.rank >= world.size)
    fail("the environment variable {} is {}, but {} is {}: expected a rank from 0 to {}",
         names.rank.name, world.rank, names.size.name, world.size, world.size - 1);
  world.local_rank = names.local_rank.is_set()
                         ? names.local_rank.integer_beside(names.rank.name, 0, kMostProcesses)
                         : world.rank;
  return world;
}

uint16_t read_port(const char* beside) {
  return static_cast<uint16_t>(Variable{"MASTER_PORT"}.integer_beside(beside, 1, 65535));
}

std::string text_or(const char* name, const char* missing) {
  const char* value = std::getenv(name);
  return value == nullptr ? missing : value;
}

World world_of_torchrun() {
  World world = read_place({{"RANK"}, {"WORLD_SIZE"}, {"LOCAL_RANK"}});
  if (world.size == 1) return world;
  world.address = Variable{"MASTER_ADDR"}.text_beside("RANK");
  world.port = read_port("RANK");
  world.agent_serves_store = text_or("TORCHELASTIC_USE_AGENT_STORE", "") == "True";
  world.start = fmt::format("{}/{}", text_or("TORCHELASTIC_RUN_ID", "run"),
                            text_or("TORCHELASTIC_RESTART_COUNT", "0"));
  return world;
}

/// The first host of a list in Slurm's notation, such as "node[07-09,12],gpu1" (node07).
std::string first_host(std::string_view list) {
  std::string host;
  for (std::size_t i = 0; i < list.size() && list[i] != ','; i++) {
    if (list[i] != '[') {
      host += list[i];
      continue;
    }
    const std::string_view numbers = list.substr(i + 1, list.find(']', i) - i - 1);
    host += numbers.substr(0, numbers.find_first_of("-,"));
    i = std::min(list.find(']', i), list.size() - 1);
  }
  return host;
}

std::string address_of_slurm() {
  if (const Variable address{"MASTER_ADDR"}; address.is_set())
    return address.text_beside("SLURM_PROCID");
  for (const char* list : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"})
    if (std::string host = first_host(text_or(list, "")); !host.empty()) return host;
  const std::string launcher = text_or("SLURM_LAUNCH_NODE_IPADDR", "");
  if (launcher.empty())
    fail(
        "the environment variable SLURM_PROCID is set, but neither SLURM_JOB_NODELIST nor "
        "MASTER_ADDR is: set MASTER_ADDR to the host of the first process");
  return launcher;
}

World world_of_slurm() {
  const bool in_step = Variable{"SLURM_STEP_NUM_TASKS"}.is_set();
  World world = read_place(
      {{"SLURM_PROCID"}, {in_step ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS"}, {"SLURM_LOCALID"}});
  if (world.size == 1) return world;
  if (!in_step && !Variable{"SLURM_STEP_ID"}.is_set())
    fail(
        "only this process of a Slurm job of {} tasks is running, because srun did not start it: "
        "put srun before the command in the batch script, or unset SLURM_PROCID to run in one "
        "process",
        world.size);
  world.address = address_of_slurm();
  const std::string job = text_or("SLURM_JOB_ID", ""), step = text_or("SLURM_STEP_ID", "0");
  world.start = fmt::format("{}.{}", job, step);
  if (Variable{"MASTER_PORT"}.is_set()) {
    world.port = read_port("SLURM_PROCID");
  } else {
    constexpr int kFirstPort = 15'000,
                  kPorts = 15'000;  // below the ports that the kernel gives out
    const int maximum = std::numeric_limits<int>::max();
    const int number = Variable{"SLURM_JOB_ID"}.integer_beside("SLURM_PROCID", 0, maximum);
    unsigned offset = static_cast<unsigned>(number);
    for (const char c : step) offset = offset * 31 + static_cast<unsigned char>(c);
    world.port = static_cast<uint16_t>(kFirstPort + offset % kPorts);
  }
  return world;
}

}  // namespace

World world_of_environment() {
  if (Variable{"RANK"}.is_set() || Variable{"WORLD_SIZE"}.is_set()) return world_of_torchrun();
  if (Variable{"SLURM_PROCID"}.is_set() &&
      (Variable{"SLURM_STEP_NUM_TASKS"}.is_set() || Variable{"SLURM_NTASKS"}.is_set()))
    return world_of_slurm();
  return {};
}

}  // namespace aqhost
