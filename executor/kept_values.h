// Where values lie that stay in the arena from run to run of programs that run by turns.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "executor/program.h"

namespace autosp::executor {

// The turns are numbered from 0, in the order in which they run. Programs are compiled in that
// order, too: each may use what those before it have said.
class KeptValues {
 public:
  // Throws InternalError where inputs of one name have several types, and where an output is kept
  // that is no kept input of any graph or has another type.
  explicit KeptValues(const std::vector<Turn>& turns);

  struct Value {
    int64_t bytes = 0;
    // Written by one turn, and read by turns after that one alone. Until the last of these has run
    // its place is among the results of the turns in between.
    bool passed_on = false;
    int writer = -1;  // turn; the last one
    int first_reader = -1;
    int last_reader = -1;
    int64_t offset = 0;  // in the arena
  };
  const Value& at(const std::string& name) const { return values_.at(name); }

  // The writer leaves it there, or it cannot be passed on after all.
  void pass_on(const std::string& name, int64_t offset) { values_.at(name).offset = offset; }
  void keep_apart(const std::string& name) { values_.at(name).passed_on = false; }

  // What is passed on to the turn, or over it.
  std::vector<std::string> passing(int turn) const;
  // What is passed on, but nowhere after the turn.
  std::set<std::string> gone_after(int turn) const;

  // Gives all others places of their own from `begin` on; returns the end of the last.
  int64_t place_from(int64_t begin);

 private:
  std::map<std::string, Value> values_;
};

}  // namespace autosp::executor
