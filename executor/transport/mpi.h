// Ranks that are MPI processes.
//
// Every collective begins with a header from each member to each other: what it calls, how many
// bytes it sends to that member, and where its operand lies. Headers make members that call
// different collectives, or never come, an error with names instead of a hang; they are a few
// hundred bytes. Members on one machine then read each other's operands in place, if these lie in
// offered memory; else the data follow point to point, packed where they are not contiguous.
// Messages between two ranks keep their order, so groups need no communicators of their own.
#pragma once

#include <memory>

#include "executor/communicator.h"

namespace autosp::executor {

// Of MPI_COMM_WORLD, duplicated. MPI must be initialised, and not finalised before this is gone.
std::unique_ptr<Communicator> make_mpi_communicator(double timeout_seconds);

}  // namespace autosp::executor
