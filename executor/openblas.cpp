#include "executor/openblas.h"

#include <cblas.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>
#include <vector>

namespace autosp::executor {

namespace {

constexpr const char* kForcedCore = "OPENBLAS_CORETYPE";

// Vector width in bits that OpenBLAS's kernels for a core of this name use; 128 for old and
// unknown.
int vector_bits(std::string_view core) {
  for (const char* wide : {"SkylakeX", "Cooperlake", "Sapphirerapids"}) {
    if (core == wide) return 512;
  }
  for (const char* middle : {"Haswell", "Zen", "Excavator", "Sandybridge"}) {
    if (core == middle) return 256;
  }
  return 128;
}

// The core to ask OpenBLAS for on this machine; null where it has nothing better than its default.
const char* best_core() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return "SkylakeX";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return nullptr;
}

std::vector<std::string> own_command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> words;
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  return words;
}

}  // namespace

int default_blas_threads(int local_ranks) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return 1;
  return std::max(1, CPU_COUNT(&cores) / std::max(1, local_ranks));
}

void set_blas_threads(int threads) { openblas_set_num_threads(threads); }

std::optional<std::string> openblas_notice() {
  const char* best = best_core();
  if (best == nullptr) return std::nullopt;
  const char* forced = std::getenv(kForcedCore);
  const bool is_forced = forced != nullptr && *forced != '\0';
  const std::string core = is_forced ? forced : openblas_get_corename();
  const int bits = vector_bits(core);
  if (bits >= vector_bits(best)) return std::nullopt;
  return fmt::format(
      "OpenBLAS runs {}-bit kernels ({}{}) on a machine with {}-bit vectors: matrix products take "
      "{} as long; {}",
      bits, is_forced ? "OPENBLAS_CORETYPE=" : "", core, vector_bits(best),
      bits == 256 ? "about twice" : "several times",
      is_forced ? "unset it" : fmt::format("set {}={}", kForcedCore, best));
}

void restart_with_fast_openblas() {
  const char* best = best_core();
  const char* forced = std::getenv(kForcedCore);
  if (best == nullptr || (forced != nullptr && *forced != '\0')) return;
  // A 256-bit choice on a 512-bit machine may be deliberate: some processors are faster so.
  if (vector_bits(openblas_get_corename()) > 128) return;
  ::setenv(kForcedCore, best, 1);
  std::vector<std::string> words = own_command_line();
  if (words.empty()) return;
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  ::execv("/proc/self/exe", pointers.data());
  ::unsetenv(kForcedCore);  // there is no /proc: go on as it is
}

}  // namespace autosp::executor
