// What the caller knows about an error: the file or the request that led to it.
#pragma once

#include <string>
#include <utility>

#include "base/error.h"

namespace autosp {

// Gives the error the lines that it lacks.
inline Error& complete(Error& error, const std::string& note, const std::string& help) {
  if (error.notes().empty()) error.note(note);
  if (error.helps().empty()) error.help(help);
  return error;
}

// Runs `action`. An Error that leaves it without a note or a help line gets these: who throws knows
// the node, who calls knows the file.
template <typename Action>
decltype(auto) with_context(const std::string& note, const std::string& help, Action&& action) {
  try {
    return std::forward<Action>(action)();
  } catch (Error& error) {
    complete(error, note, help);
    throw;
  }
}

}  // namespace autosp
