// OpenBLAS's own threads.
#pragma once

namespace autosp::executor {

// Cores this process may use, divided by the ranks that share them; at least 1.
int default_blas_threads(int local_ranks);

// For the whole process.
void set_blas_threads(int threads);

}  // namespace autosp::executor
