// What every transport must do, with inputs in closed form: element `index` of what rank r brings
// is a function of r and index, so every rank knows what it must receive.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "executor/communicator.h"

namespace autosp::executor {

// Called by every rank of a world of any size; returns what is wrong, or "".
struct TransportCase {
  std::string name;
  std::function<std::string(Communicator&)> run;
};

std::vector<TransportCase> transport_cases();

}  // namespace autosp::executor
