// Programs of one rank that run by turns, and what stays from run to run: the memory that they work
// in, what other ranks have mapped of it, threads, open files, and values by name.
//
//   session.keep("w", initial);
//   for each step:
//     session.run(forward_and_backward, batch, {{"w.grad", "w.grad"}});
//     session.run(update, {}, {{"w.new", "w"}});
//   session.kept("w")
//
// An input is what was fed, else what is kept under its name. Programs share one arena, as large as
// the largest needs: a run leaves nothing in it, and its outputs are copied out.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "executor/execute.h"

namespace autosp::executor {

// Names under which outputs are kept, by output.
using KeptOutputs = std::map<std::string, std::string>;

class Session {
 public:
  virtual ~Session() = default;

  // From now on `name` is this.
  virtual void keep(const std::string& name, const ir::Tensor& value) = 0;
  // What is kept under the name; stays as it is whatever runs next.
  virtual ir::Tensor kept(const std::string& name) = 0;
  // Lets go of it, where that gives memory back.
  virtual void drop(const std::string& name) = 0;

  // One of the session's programs. `keeps`: outputs that are kept and not among the result's. All
  // ranks run the same programs in the same order. Throws as execute() does.
  virtual RankResult run(const Program& program, const Arrays& feeds,
                         const KeptOutputs& keeps = {}) = 0;
};

// `programs`: what will run, of one number of workers. They, the communicator and what the options
// point to must outlive it. On the host its results have no measured memory, as execute()'s have.
std::unique_ptr<Session> make_session(const std::vector<const Program*>& programs,
                                      Communicator& communicator, const ExecuteOptions& options);

}  // namespace autosp::executor
