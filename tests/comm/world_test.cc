#include "run/world.h"

#include <cstdlib>
#include <map>
#include <string>

#include "base/error.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

using Variables = std::map<std::string, std::string>;

/// Sets the variables, and unsets all others that world_of_environment() reads, for as long as it
/// lives.
class Environment {
 public:
  explicit Environment(const Variables& variables) {
    clear();
    for (const auto& [name, value] : variables) ::setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() { clear(); }

 private:
  static void clear() {
    for (const char* name :
         {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
          "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
          "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID",
          "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_JOB_ID",
          "SLURM_LAUNCH_NODE_IPADDR"})
      ::unsetenv(name);
  }
};

World world_of(const Variables& variables) {
  const Environment environment(variables);
  return world_of_environment();
}

std::string error_of(const Variables& variables) {
  try {
    world_of(variables);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

const Variables kByHand{{"RANK", "1"},
                        {"WORLD_SIZE", "4"},
                        {"LOCAL_RANK", "0"},
                        {"MASTER_ADDR", "node1"},
                        {"MASTER_PORT", "29500"}};

Variables with(Variables variables, const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}

Variables without(Variables variables, const std::string& name) {
  variables.erase(name);
  return variables;
}

}  // namespace

TEST_CASE("a process without the variables of a launcher is alone") {
  CHECK(world_of({}).size == 1);
  CHECK(world_of({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).size == 1);
  CHECK(world_of({{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "8"}}).size == 1);  // salloc's shell
  CHECK(world_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}}).size == 1);
  CHECK(world_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_STEP_NUM_TASKS", "1"}})
            .size == 1);
  CHECK(world_of({{"SLURM_PROCID", "0"}}).size == 1);
}

TEST_CASE("the place of a process that was started by hand or by torchrun") {
  World world = world_of(kByHand);
  CHECK(world.rank == 1);
  CHECK(world.size == 4);
  CHECK(world.local_rank == 0);
  CHECK(world.address == "node1");
  CHECK(world.port == 29500);
  CHECK(!world.agent_serves_store);
  CHECK(world_of(without(kByHand, "LOCAL_RANK")).local_rank == 1);

  Variables torchrun = with(kByHand, "TORCHELASTIC_USE_AGENT_STORE", "True");
  torchrun = with(with(torchrun, "TORCHELASTIC_RUN_ID", "r"), "TORCHELASTIC_RESTART_COUNT", "2");
  world = world_of(torchrun);
  CHECK(world.agent_serves_store);
  CHECK(world.start == "r/2");
  CHECK(world_of(with(torchrun, "SLURM_PROCID", "3")).rank == 1);  // torchrun in a Slurm job
}

TEST_CASE("the place of a process of a Slurm job") {
  const Variables slurm{{"SLURM_PROCID", "5"},   {"SLURM_NTASKS", "8"},
                        {"SLURM_LOCALID", "1"},  {"SLURM_JOB_NODELIST", "node[07-09,12],gpu1"},
                        {"SLURM_JOB_ID", "123"}, {"SLURM_STEP_ID", "0"}};
  const World world = world_of(slurm);
  CHECK(world.rank == 5);
  CHECK(world.size == 8);
  CHECK(world.local_rank == 1);
  CHECK(world.address == "node07");
  CHECK(world.port >= 15000);
  CHECK(world.port < 30000);
  CHECK(world.port == world_of(with(slurm, "SLURM_PROCID", "6")).port);
  CHECK(world.port != world_of(with(slurm, "SLURM_STEP_ID", "1")).port);
  CHECK(world_of(with(slurm, "MASTER_ADDR", "10.0.0.1")).address == "10.0.0.1");
  CHECK(world_of(with(slurm, "MASTER_PORT", "4000")).port == 4000);
  for (const auto& [list, host] : Variables{{"a1,b2", "a1"},
                                            {"rack[2-3]n[4,6]-ib", "rack2n4-ib"},
                                            {"n[10]", "n10"},
                                            {"single", "single"}})
    CHECK(world_of(with(slurm, "SLURM_JOB_NODELIST", list)).address == host);
  CHECK(world_of(with(without(slurm, "SLURM_JOB_NODELIST"), "SLURM_LAUNCH_NODE_IPADDR", "10.1.1.1"))
            .address == "10.1.1.1");
  CHECK(error_of(without(slurm, "SLURM_JOB_NODELIST")) ==
        "the environment variable SLURM_PROCID is set, but neither SLURM_JOB_NODELIST nor "
        "MASTER_ADDR is: set MASTER_ADDR to the host of the first process");
  const char* const without_srun =
      "only this process of a Slurm job of 8 tasks is running, because srun did not start "
      "it: put srun before the command in the batch script, or unset SLURM_PROCID to run in one "
      "process";
  CHECK(error_of(without(slurm, "SLURM_STEP_ID")) == without_srun);
  CHECK(error_of(with(slurm, "SLURM_JOB_ID", "x")) ==
        "the environment variable SLURM_JOB_ID is \"x\": expected an integer from 0 on");
}

TEST_CASE("a wrong variable is named, with what it has and what was expected") {
  const auto missing = [](const char* set, const char* unset) {
    return std::string("the environment variable ") + set + " is set, but " + unset +
           " is not: a run over several processes needs both; unset " + set +
           " to run in one process";
  };
  CHECK(error_of({{"RANK", "0"}}) == missing("RANK", "WORLD_SIZE"));
  CHECK(error_of({{"WORLD_SIZE", "2"}}) == missing("WORLD_SIZE", "RANK"));
  CHECK(error_of(without(kByHand, "MASTER_ADDR")) == missing("RANK", "MASTER_ADDR"));
  CHECK(error_of(without(kByHand, "MASTER_PORT")) == missing("RANK", "MASTER_PORT"));
  CHECK(error_of(with(kByHand, "RANK", "4")) ==
        "the environment variable RANK is 4, but WORLD_SIZE is 4: expected a rank from 0 to 3");
  CHECK(error_of(with(kByHand, "RANK", "-1")) ==
        "the environment variable RANK is \"-1\": expected an integer from 0 on");
  CHECK(error_of(with(kByHand, "RANK", "1x")) ==
        "the environment variable RANK is \"1x\": expected an integer from 0 on");
  CHECK(error_of(with(kByHand, "WORLD_SIZE", "0")) ==
        "the environment variable WORLD_SIZE is \"0\": expected an integer from 1 to 100000");
  CHECK(error_of(with(kByHand, "WORLD_SIZE", "99999999999")) ==
        "the environment variable WORLD_SIZE is \"99999999999\": expected an integer from 1 to "
        "100000");
  for (const char* port : {"0", "65536", "port", "80 "})
    CHECK(error_of(with(kByHand, "MASTER_PORT", port)) ==
          "the environment variable MASTER_PORT is \"" + std::string(port) +
              "\": expected an integer from 1 to 65535");
  CHECK(error_of(with(kByHand, "LOCAL_RANK", "")) ==
        "the environment variable LOCAL_RANK is empty");
  CHECK(error_of(with(kByHand, "MASTER_ADDR", "")) ==
        "the environment variable MASTER_ADDR is empty");
}

}  // namespace aqhost
