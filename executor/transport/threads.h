// Ranks that are threads of one process.
//
// A collective is a meeting: every member posts where its data is and waits until all have; then
// each pulls what it needs straight out of the others' memory, one copy, and waits again so that
// nobody overwrites what another still reads. Once all have come, a collective completes, unless a
// member's device fails in it. Only the first wait can end early otherwise: because members called
// different collectives, because nobody can ever come (all others wait elsewhere or have finished),
// because the time is up, or because some rank failed. Then every rank is ended at its next
// collective.
#pragma once

#include <exception>
#include <memory>

#include "executor/communicator.h"

namespace autosp::executor {

class ThreadWorld {
 public:
  ThreadWorld(int size, double timeout_seconds);
  ~ThreadWorld();

  // The communicator of one rank; used by that rank's thread alone, and not after this world.
  Communicator& rank(int rank);

  // A rank says that it will call no more collectives, or why it cannot.
  void finish(int rank);
  void fail(int rank, std::exception_ptr error);

  // The error of the rank that failed first, or null.
  std::exception_ptr failure() const;

 private:
  class Rank;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace autosp::executor
