// The OpenBLAS in this process: its threads, and the kernels it has chosen.
#pragma once

#include <optional>
#include <string>

namespace autosp::executor {

// Cores this process may use, divided by the ranks that share them; at least 1.
int default_blas_threads(int local_ranks);

// For the whole process.
void set_blas_threads(int threads);

// A sentence for the user when OpenBLAS runs on kernels slower than this machine's.
std::optional<std::string> openblas_notice();

// OpenBLAS chooses kernels by the processor's model number when it is loaded, and takes those of
// 2004 for a model newer than itself. Where that has happened, starts this program again from the
// beginning with OPENBLAS_CORETYPE set by what the processor can do; returns if there is no need.
void restart_with_fast_openblas();

}  // namespace autosp::executor
