// This session's place among the ranks, and how it talks to the others.
#pragma once

#include <exception>
#include <memory>
#include <string>

#include "executor/communicator.h"

namespace autosp::onnxruntime {

// What session config entries say (docs/other_runtimes.md).
struct Settings {
  bool threads = false;  // else MPI
  double timeout = 60;   // of a collective, seconds
  // Of threads alone.
  std::string world;
  int rank = 0;
  int ranks = 1;
};

class Member {
 public:
  virtual ~Member() = default;
  virtual executor::Communicator& communicator() = 0;
  // A collective of this rank has failed: none can be trusted to match any more.
  virtual void fail(std::exception_ptr error) = 0;
};

// Threads: sessions that name one world talk to each other while any of them lives.
// MPI: all sessions of a process share its rank. MPI is initialised if nobody has done so, and then
// finalised when the process ends, unless a collective has failed: mpirun then ends the other
// ranks.
std::shared_ptr<Member> join(const Settings& settings);

// Ends the collectives of a world of threads, if there is one of that name, because a rank failed.
void fail_rank(const std::string& world, int rank, const std::string& reason);

}  // namespace autosp::onnxruntime
