// Runs our attention kernels on request, for bench/attention.py, which measures them beside another
// implementation's: each request is one line on stdin, each answer one line on stdout.
//
//   setup B H HK S D CAUSAL THREADS FILE TYPE   q, k, v, output gradient, one after the other, in
//                                          float32, bfloat16 or float16
//   forward | backward                     seconds, and seconds of processor time of all threads
//   peak                                   GFLOP/s of fused multiply-adds in registers
//   save FILE                              output and gradients, one after the other
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "executor/kernel_table.h"
#include "executor/kernels/attention/blocks.h"
#include "executor/workers.h"
#include "ir/builder.h"

namespace {

using namespace autosp;
struct Seconds {
  double wall = 0;
  double processor = 0;
};

Seconds now() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  const auto wall = std::chrono::steady_clock::now().time_since_epoch();
  return {std::chrono::duration<double>(wall).count(),
          static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec)};
}

Seconds since(const Seconds& begin) {
  const Seconds end = now();
  return {end.wall - begin.wall, end.processor - begin.processor};
}

// One operator with its operands, results and scratch memory.
class Operator {
 public:
  Operator(const ir::Graph& graph, const ir::Node& node, std::vector<ir::Tensor> operands,
           executor::Workers& workers)
      : node_(node), operands_(std::move(operands)), workers_(workers) {
    kernel_ = executor::cpu_kernels().find(graph, node, workers.count());
    for (ValueId id : node.outputs) results_.emplace_back(graph.type(id));
    workspace_ = ir::Tensor(ir::Type{ir::DataType::kUInt8, {kernel_.workspace_bytes}});
  }

  Seconds run() {
    std::vector<reference::Operand> operands;
    for (const ir::Tensor& tensor : operands_) {
      if (tensor.dtype() == ir::DataType::kUndefined) {
        operands.emplace_back();
      } else {
        operands.push_back({tensor.dtype(), &tensor.shape(), tensor.bytes().data()});
      }
    }
    std::vector<reference::Result> results;
    for (ir::Tensor& tensor : results_) {
      results.push_back({tensor.dtype(), &tensor.shape(), tensor.mutable_bytes()});
    }
    const Seconds begin = now();
    kernel_({{node_, operands, results}, workspace_.mutable_bytes(), nullptr, &workers_});
    return since(begin);
  }

  const std::vector<ir::Tensor>& results() const { return results_; }
  int64_t workspace_bytes() const { return kernel_.workspace_bytes; }

 private:
  const ir::Node& node_;
  std::vector<ir::Tensor> operands_;
  executor::Workers& workers_;
  executor::BoundKernel kernel_;
  std::vector<ir::Tensor> results_;
  ir::Tensor workspace_;
};

struct Setup {
  ir::Graph graph;
  std::unique_ptr<executor::Workers> workers;
  std::unique_ptr<Operator> forward;
  std::unique_ptr<Operator> backward;
};

ir::DataType type_named(const std::string& name) {
  for (const ir::DataType type :
       {ir::DataType::kFloat32, ir::DataType::kBFloat16, ir::DataType::kFloat16}) {
    if (ir::name_of(type) == name) return type;
  }
  throw std::invalid_argument(name);
}

std::unique_ptr<Setup> set_up(std::istream& request) {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t length = 0;
  int64_t width = 0;
  int causal = 0;
  int threads = 1;
  std::string file;
  std::string type_name;
  request >> batch >> heads >> kv_heads >> length >> width >> causal >> threads >> file >>
      type_name;
  const ir::DataType dtype = type_named(type_name);
  auto setup = std::make_unique<Setup>();
  setup->workers = std::make_unique<executor::Workers>(threads);
  ir::Builder build(setup->graph);
  const auto type = [&](ir::Shape shape) { return ir::Type{dtype, std::move(shape)}; };
  const ir::Type query = type({batch, heads, length, width});
  const ir::Type key = type({batch, kv_heads, length, width});
  const ir::Type rows{ir::DataType::kFloat32, {batch, heads, length}};
  std::ifstream stream(file, std::ios::binary);
  std::vector<ir::Tensor> data;
  std::vector<ValueId> ids;
  for (const ir::Type& t : {query, key, key, query}) {
    data.emplace_back(t);
    stream.read(reinterpret_cast<char*>(data.back().mutable_bytes()), t.num_bytes());
    ids.push_back(setup->graph.add_input(fmt::format("x{}", ids.size()), t));
  }
  std::vector<ValueId> masks;
  std::vector<ir::Tensor> mask_data;
  if (causal != 0) {
    std::vector<int64_t> end(static_cast<size_t>(length));
    for (int64_t i = 0; i < length; ++i) end[static_cast<size_t>(i)] = i + 1;
    mask_data = {ir::Tensor(), ir::Tensor(), ir::Tensor::int64s(end).reshaped({1, length})};
    masks = {ValueId(), ValueId(), build.constant(mask_data[2])};
  }
  const auto with_masks = [](auto first, const auto& rest) {
    first.insert(first.end(), rest.begin(), rest.end());
    return first;
  };
  const ir::Attributes attributes{
      {"scale", static_cast<float>(1 / std::sqrt(static_cast<double>(width)))}};
  const std::string domain(ir::kAutospDomain);
  const auto forward =
      build.node("Attention", with_masks(std::vector<ValueId>{ids[0], ids[1], ids[2]}, masks),
                 std::vector<ir::Type>{query, rows, rows}, attributes, domain);
  const std::vector<ValueId> operands = {ids[3],     ids[0],     ids[1],    ids[2],
                                         forward[0], forward[1], forward[2]};
  build.node("AttentionGrad", with_masks(operands, masks), std::vector<ir::Type>{query, key, key},
             attributes, domain);
  const auto& nodes = setup->graph.nodes();
  setup->forward = std::make_unique<Operator>(
      setup->graph, nodes[0],
      with_masks(std::vector<ir::Tensor>{data[0], data[1], data[2]}, mask_data), *setup->workers);
  setup->forward->run();
  const auto& results = setup->forward->results();
  setup->backward = std::make_unique<Operator>(
      setup->graph, nodes[1],
      with_masks(std::vector<ir::Tensor>{data[3], data[0], data[1], data[2], results[0], results[1],
                                         results[2]},
                 mask_data),
      *setup->workers);
  return setup;
}

#if defined(__x86_64__)
constexpr int64_t kRounds = 1 << 21;
constexpr int kChains = 12;

void keep(float x) { asm volatile("" : : "m"(x)); }

__attribute__((target("avx512f"), noinline)) double multiply_adds_512() {
  __m512 sums[kChains];
  for (int k = 0; k < kChains; ++k) sums[k] = _mm512_set1_ps(static_cast<float>(k));
  const __m512 x = _mm512_set1_ps(0.999F);
  for (int64_t round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, x, x);
  }
  for (int k = 1; k < kChains; ++k) sums[0] = _mm512_add_ps(sums[0], sums[k]);
  keep(_mm512_reduce_add_ps(sums[0]));
  return 2.0 * 16 * kChains * kRounds;
}

__attribute__((target("avx2,fma"), noinline)) double multiply_adds_256() {
  __m256 sums[kChains];
  for (int k = 0; k < kChains; ++k) sums[k] = _mm256_set1_ps(static_cast<float>(k));
  const __m256 x = _mm256_set1_ps(0.999F);
  for (int64_t round = 0; round < kRounds; ++round) {
#pragma GCC unroll 12
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, x, x);
  }
  for (int k = 1; k < kChains; ++k) sums[0] = _mm256_add_ps(sums[0], sums[k]);
  keep(_mm256_cvtss_f32(sums[0]));
  return 2.0 * 8 * kChains * kRounds;
}

double multiply_adds() {
  if (__builtin_cpu_supports("avx512f")) return multiply_adds_512();
  if (__builtin_cpu_supports("fma")) return multiply_adds_256();
  return 0;
}
#else
double multiply_adds() { return 0; }
#endif

// By the clock on the wall, and per processor second of every thread.
Seconds peak(executor::Workers& workers) {
  Seconds best;
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::vector<double> operations(static_cast<size_t>(workers.count()));
    const Seconds begin = now();
    workers.run([&](int worker) { operations[static_cast<size_t>(worker)] = multiply_adds(); });
    double total = 0;
    for (double x : operations) total += x;
    const Seconds taken = since(begin);
    best.wall = std::max(best.wall, total / taken.wall * 1e-9);
    best.processor = std::max(best.processor, total / taken.processor * 1e-9 * workers.count());
  }
  return best;
}

void print(const Seconds& seconds) { fmt::print("{} {}\n", seconds.wall, seconds.processor); }

void save(const Setup& setup, const std::string& file) {
  std::ofstream stream(file, std::ios::binary);
  const auto write = [&](const ir::Tensor& tensor) {
    stream.write(reinterpret_cast<const char*>(tensor.bytes().data()),
                 static_cast<std::streamsize>(tensor.bytes().size()));
  };
  write(setup.forward->results()[0]);
  for (const ir::Tensor& tensor : setup.backward->results()) write(tensor);
}

}  // namespace

int main() {
  std::unique_ptr<Setup> setup;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream request(line);
    std::string word;
    request >> word;
    if (word == "setup") {
      setup = set_up(request);
      fmt::print("{} {} {}\n",
                 executor::attention::best_functions(setup->forward->results()[0].dtype()).name,
                 setup->forward->workspace_bytes(), setup->backward->workspace_bytes());
    } else if (setup == nullptr) {
      fmt::print("setup comes first\n");
    } else if (word == "forward") {
      print(setup->forward->run());
    } else if (word == "backward") {
      print(setup->backward->run());
    } else if (word == "peak") {
      print(peak(*setup->workers));
    } else if (word == "save") {
      request >> word;
      save(*setup, word);
      fmt::print("saved\n");
    } else {
      fmt::print("unknown request '{}'\n", word);
    }
    std::fflush(stdout);
  }
}
