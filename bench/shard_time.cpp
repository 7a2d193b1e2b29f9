// How long `autosp-onnx shard` takes, and how much memory, as layers grow: the tool itself is run
// on Llama graphs of an 8B model's widths. The result is checked before a time is printed.
//
//   bench_shard_time [AUTOSP_ONNX]      the binary to measure; default: beside this one
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "llama_step.h"
#include "onnx/manifest.h"
#include "onnx/model.h"

namespace fs = std::filesystem;

namespace {

constexpr int64_t kRanks = 4;

struct Measurement {
  double seconds = 0;
  double peak_mib = 0;
};

Measurement run(const std::vector<std::string>& arguments) {
  const auto start = std::chrono::steady_clock::now();
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<std::string> copies = arguments;  // execv takes what it could write to
    std::vector<char*> words;
    for (std::string& copy : copies) words.push_back(copy.data());
    words.push_back(nullptr);
    const int null = ::open("/dev/null", O_WRONLY);
    ::dup2(null, STDOUT_FILENO);
    ::execv(words[0], words.data());
    ::_exit(127);
  }
  int status = 0;
  rusage usage{};
  ::wait4(child, &status, 0, &usage);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw autosp::Error("'{}' failed", arguments[0]);
  }
  return {elapsed.count(), static_cast<double>(usage.ru_maxrss) / 1024.0};
}

// Ulysses' exchanges: q, k, v, o and their gradients, once each per layer.
void check(const autosp::onnx_io::Manifest& manifest, const autosp::bench::LlamaSizes& sizes) {
  int64_t count = 0;
  int64_t bytes = 0;
  for (const auto& collective : manifest.collectives) {
    if (collective.kind != "all-to-all") continue;
    ++count;
    bytes += collective.bytes_per_rank;
  }
  const int64_t tokens = sizes.batch * sizes.sequence / kRanks;
  const int64_t expected = sizes.layers * 2 * tokens * sizes.head_dim() * 4 *
                           (2 * sizes.heads + 2 * sizes.kv_heads) * (kRanks - 1) / kRanks;
  if (count != 8 * sizes.layers || bytes != expected) {
    throw autosp::Error("{} all-to-alls of {} bytes, expected {} of {}", count, bytes,
                        8 * sizes.layers, expected);
  }
}

int measure(const fs::path& tool) {
  const fs::path folder = fs::temp_directory_path() / fmt::format("autosp-bench-{}", ::getpid());
  fs::create_directories(folder);
  fmt::print("shard --sp {}, Llama of hidden 4096, 32/8 heads, sequence 131072\n", kRanks);
  fmt::print(
      "layers   nodes  seconds  ms/layer  peak MiB  time against fewest layers, per layer\n");
  double first = 0;
  for (int64_t layers : {4, 8, 16, 32, 126}) {
    autosp::bench::LlamaSizes sizes{.layers = layers, .sequence = 131072};
    const autosp::ir::Graph graph = autosp::bench::llama_step(sizes);
    autosp::onnx_io::export_model(graph, folder / "model.onnx");
    const Measurement result =
        run({tool.string(), "shard", (folder / "model.onnx").string(), "--sp",
             std::to_string(kRanks), "-o", (folder / "out").string()});
    check(autosp::onnx_io::read_manifest(folder / "out"), sizes);
    const double per_layer = result.seconds / static_cast<double>(layers);
    if (first == 0) first = per_layer;
    fmt::print("{:>6}  {:>6}  {:>7.2f}  {:>8.1f}  {:>8.0f}  {:.2f}\n", layers, graph.nodes().size(),
               result.seconds, per_layer * 1e3, result.peak_mib, per_layer / first);
    std::fflush(stdout);
  }
  fs::remove_all(folder);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return measure(argc > 1 ? fs::path(argv[1])
                            : fs::canonical("/proc/self/exe").parent_path() / "autosp-onnx");
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
