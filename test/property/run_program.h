// Runs an SPMD program on the executor, every rank with its slice of the feeds.
#pragma once

#include "executor/run.h"
#include "support/run_graph.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

// `feeds` hold every input of the program's graph, whole. Ranks are threads, with one thread each.
executor::RunResult run_program(const SpmdProgram& program, const test::Tensors& feeds);

}  // namespace autosp::transforms
