#include "executor/blas_threads.h"

#include <cblas.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "executor/run.h"

namespace autosp::executor {

int default_blas_threads(int local_ranks) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores) / std::max(1, local_ranks));
}

void set_blas_threads(int threads) { openblas_set_num_threads(threads); }

std::optional<std::string> openblas_notice() {
  const char* forced = std::getenv("OPENBLAS_CORETYPE");
  if (forced == nullptr || *forced == '\0') return std::nullopt;
#if defined(__x86_64__)
  const std::string_view name = forced;
  const bool wide = name == "SkylakeX" || name == "Cooperlake" || name == "Sapphirerapids";
  if (wide || !__builtin_cpu_supports("avx512f")) return std::nullopt;
  return fmt::format(
      "OPENBLAS_CORETYPE={} makes OpenBLAS use kernels without this machine's AVX-512: "
      "matrix products take about twice as long; unset it",
      forced);
#else
  return std::nullopt;
#endif
}

}  // namespace autosp::executor
