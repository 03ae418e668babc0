#pragma once

#include <cstdint>
#include <string>

namespace aqhost {

/// Where this process stands among the processes of one run, and where they meet.
struct World {
  int rank = 0;         // 0 <= rank < size
  int size = 1;         // the number of processes; 1: the fields below have no meaning
  int local_rank = 0;   // the number of this process among those of its machine
  std::string address;  // the host of the store at which the processes meet
  uint16_t port = 0;
  // Whether torchrun serves the store; otherwise rank 0 does.
  bool agent_serves_store = false;
  // Tells this start from others that meet at the same store, such as torchrun's restarts.
  std::string start;
};

/// Reads how this process was started. torchrun, or a user by hand, sets RANK, WORLD_SIZE,
/// LOCAL_RANK, MASTER_ADDR and MASTER_PORT. srun of Slurm sets SLURM_PROCID, SLURM_NTASKS and
/// SLURM_LOCALID; there, MASTER_ADDR is the first host of the job, and MASTER_PORT is derived from
/// the job's number, unless they are set. Without RANK, WORLD_SIZE and SLURM_PROCID, or in a job of
/// one task, the process is alone. Throws an Error if a process in the batch script of a job of
/// several tasks was not started by srun, or if a variable is missing or wrong; the latter names
/// the variable, what it has and what was expected.
World world_of_environment();

}  // namespace aqhost
