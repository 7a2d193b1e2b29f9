// What a session keeps from run to run of its programs (session.h): where it lies in the arena, and
// whether it is there.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "executor/program.h"
#include "ir/tensor.h"

namespace autosp::executor {

class SessionValues {
 public:
  // `programs`: of one compile_turns().
  explicit SessionValues(const std::vector<const Program*>& programs);

  struct Value {
    ir::Type type;
    int64_t offset = 0;  // in the arena
  };
  // Throws InternalError where no program has such a kept input.
  const Value& at(const std::string& name) const;
  // The same, where there is something.
  const Value& existing(const std::string& name) const;
  bool exists(const std::string& name) const { return existing_.contains(name); }

  // Of the program's inputs, those that are kept. Throws InternalError where one is not there.
  std::set<std::string> inputs_of(const Program& program) const;

  // Something is there now. Throws InternalError where it has another type.
  void set(const std::string& name, const ir::Type& type);
  // Before and after a run: while it runs, and if it fails, nothing is there that it writes or
  // writes over.
  void forget_before(const Program& program);
  void set_after(const Program& program);

  // Results that the program keeps but could not write where they are to be; offsets in the arena.
  struct Copy {
    int64_t from = 0;
    int64_t to = 0;
    int64_t bytes = 0;
  };
  std::vector<Copy> copies(const Program& program) const;
  // Whether a run has to give out the output: it is not kept, or it is something else than a
  // result, which has to be taken before others are written over it, and put where it is to be.
  bool gives_out(const Program& program, const ir::Output& output) const;

 private:
  std::map<std::string, Value> values_;
  std::set<std::string> existing_;
};

}  // namespace autosp::executor
