// Runs an SPMD program on the executor, every rank with its slice of the feeds.
#pragma once

#include "executor/run.h"
#include "support/run_graph.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

// `feeds` hold every input of the program's graph, whole. Ranks are threads, with one thread each,
// and with `overlap` another one for collectives; on devices if there is a `backend`.
executor::RunResult run_program(const SpmdProgram& program, const test::Tensors& feeds,
                                bool overlap = false,
                                std::shared_ptr<executor::Backend> backend = nullptr);

}  // namespace autosp::transforms
