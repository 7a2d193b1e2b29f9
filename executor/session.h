// Programs of one rank that run by turns, and what stays from run to run: the memory that they work
// in, what other ranks have mapped of it, threads, open files, and values by name.
//
//   programs = compile_turns({{step graph, {"w"}, {{"w.grad", "w.grad"}}},
//                             {update graph, {"w", "w.grad"}, {{"w.new", "w"}}}})
//   session = make_session(programs, ...)
//   session.keep("w", initial);
//   for each batch:
//     session.run(programs[0], batch);
//     session.run(programs[1], {{"rate", rate}});
//   session.kept("w")
//
// An input of a program is what is kept under its name, where it was said so when programs were
// compiled; all others are fed, for one run. What is kept lies in the one arena of all programs,
// where the program that writes it has put it (program.h: Turn); all other outputs are copied out.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "executor/execute.h"

namespace autosp::executor {

class Session {
 public:
  virtual ~Session() = default;

  // From now on `name`, a kept input of some program, is this. What one program leaves for another
  // can be set just before that one runs.
  virtual void keep(const std::string& name, const ir::Tensor& value) = 0;
  virtual void keep_zeros(const std::string& name) = 0;
  // A copy of what is kept under the name. Throws InternalError where nothing is, or no longer.
  virtual ir::Tensor kept(const std::string& name) = 0;
  // Bytes of it; none where nothing is kept.
  virtual int64_t kept_bytes(const std::string& name) const = 0;

  // One of the session's programs; the result has those of its outputs that are not kept. All ranks
  // run the same programs in the same order. Feeds are not changed in place afterwards: a device
  // that has one already does not read it again. Throws as execute() does, of `feeds`; what a run
  // that has failed was to write is no longer kept.
  virtual RankResult run(const Program& program, const Arrays& feeds) = 0;
};

// `programs`: of one compile_turns(), which must outlive the session, as the communicator and what
// the options point to must. Every run is of one step. On the host its results have no measured
// memory, as execute()'s have.
std::unique_ptr<Session> make_session(const std::vector<Program>& programs,
                                      Communicator& communicator, const ExecuteOptions& options);

}  // namespace autosp::executor
