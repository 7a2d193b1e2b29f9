// Programs of one rank that run by turns, and what stays from run to run: the memory that they work
// in, what other ranks have mapped of it, threads, open files, and values by name.
//
//   session = make_session({{&step, {"w"}}, {&update, {"w", "w.grad"}}}, ...)
//   session.keep("w", initial);
//   for each batch:
//     session.run(step, batch, {{"w.grad", "w.grad"}});
//     session.run(update, {{"rate", rate}}, {{"w.new", "w"}});
//   session.kept("w")
//
// An input of a program is what is kept under its name, where it was said so when the session was
// made; all others are fed, for one run. Programs share one arena, as large as the largest needs: a
// run leaves nothing in it, and its outputs are copied out.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "executor/execute.h"

namespace autosp::executor {

// Names under which outputs are kept, by output.
using KeptOutputs = std::map<std::string, std::string>;

// A program, which must outlive its session, and those of its inputs that are kept.
struct SessionProgram {
  const Program* program = nullptr;
  std::set<std::string> kept;
};

class Session {
 public:
  virtual ~Session() = default;

  // From now on `name`, a kept input of some program, is this.
  virtual void keep(const std::string& name, const ir::Tensor& value) = 0;
  virtual void keep_zeros(const std::string& name, const ir::Type& type) = 0;
  // What is kept under the name; stays as it is whatever runs next.
  virtual ir::Tensor kept(const std::string& name) = 0;
  // Bytes of it; none where nothing is kept.
  virtual int64_t kept_bytes(const std::string& name) const = 0;
  // Nothing is kept under the name until something is again.
  virtual void drop(const std::string& name) = 0;

  // One of the session's programs. `keeps`: outputs that are kept and not among the result's. All
  // ranks run the same programs in the same order. Throws as execute() does, of `feeds`.
  virtual RankResult run(const Program& program, const Arrays& feeds,
                         const KeptOutputs& keeps = {}) = 0;
};

// Bytes of an arena in which they run by turns.
int64_t largest_arena(const std::vector<SessionProgram>& programs);

// `programs`: what will run, of one number of workers; of a kept name all have one type. The
// communicator and what the options point to must outlive the session, too. On the host its results
// have no measured memory, as execute()'s have.
std::unique_ptr<Session> make_session(const std::vector<SessionProgram>& programs,
                                      Communicator& communicator, const ExecuteOptions& options);

}  // namespace autosp::executor
