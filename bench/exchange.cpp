// How fast ranks of this machine exchange: Ulysses' all-to-all, [tokens / P, heads, width] to
// [tokens, heads / P, width], by this project's two transports, beside MPI_Alltoall of blocks that
// are contiguous already, and memcpy. Results are checked before a rate is printed.
//
//   mpirun -np 2 bench_exchange [MIB...]      operand sizes; default 1 4 16 64
//
// The ranks that are threads are all in the first process, which mpirun may have bound to one core:
// they leave its binding.
// Prints a JSON object per size: GiB/s that a rank sends to others, from the median of the slowest
// rank's times.
#include <fmt/format.h>
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "executor/memory.h"
#include "executor/run.h"
#include "executor/transport/boxes.h"
#include "executor/transport/threads.h"

namespace {

using namespace autosp;
using namespace autosp::executor;

constexpr int64_t kWidth = 64;
constexpr int64_t kHeadsPerRank = 4;
constexpr int kRepetitions = 15;

struct Exchange {
  int rank;
  int ranks;
  ir::Shape x_shape;
  ir::Shape y_shape;
  std::vector<Box> send;
  std::vector<Box> receive;

  Exchange(int own_rank, int all_ranks, int64_t mebibytes) : rank(own_rank), ranks(all_ranks) {
    const int64_t heads = kHeadsPerRank * ranks;
    const int64_t tokens = (mebibytes << 20) / (4 * heads * kWidth);  // of one rank
    x_shape = {tokens, heads, kWidth};
    y_shape = {tokens * ranks, kHeadsPerRank, kWidth};
    const auto n = static_cast<size_t>(ranks);
    send = slabs(x_shape, 1, std::vector<int64_t>(n, kHeadsPerRank));
    receive = slabs(y_shape, 0, std::vector<int64_t>(n, tokens));
  }

  int64_t bytes() const { return ir::num_elements(x_shape) * 4; }
  double sent() const { return static_cast<double>(bytes()) * (ranks - 1) / ranks; }
  Collective collective() const {
    std::vector<int> group(static_cast<size_t>(ranks));
    for (int k = 0; k < ranks; ++k) group[static_cast<size_t>(k)] = k;
    return {"exchange", "AllToAll", group, ir::DataType::kFloat32};
  }
  // Element i of rank r's operand.
  static float element(int64_t r, int64_t i) { return static_cast<float>((i * 7 + r * 13) % 8191); }
  void fill(float* x) const {
    for (int64_t i = 0; i < ir::num_elements(x_shape); ++i) x[i] = element(rank, i);
  }
  void check(const float* y, const char* how) const {
    const int64_t tokens = x_shape[0];
    constexpr int64_t kRow = kHeadsPerRank * kWidth;
    for (int64_t t = 0; t < y_shape[0]; ++t) {
      const int64_t from = t / tokens;
      const int64_t begin = ((t % tokens) * x_shape[1] + rank * kHeadsPerRank) * kWidth;
      for (int64_t i = 0; i < kRow; ++i) {
        if (y[t * kRow + i] != element(from, begin + i)) {
          throw Error("{}: rank {} holds something else at token {}", how, rank, t);
        }
      }
    }
  }
};

// Median seconds of `step`, which every rank begins together.
double median_seconds(const std::function<void()>& meet, const std::function<void()>& step) {
  std::vector<double> seconds;
  for (int k = 0; k <= kRepetitions; ++k) {
    meet();
    const auto begin = std::chrono::steady_clock::now();
    step();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    if (k > 0) seconds.push_back(elapsed.count());
  }
  std::ranges::nth_element(seconds, seconds.begin() + kRepetitions / 2);
  return seconds[kRepetitions / 2];
}

using Rates = std::map<std::string, double>;

double slowest(double seconds) {
  double result = 0;
  MPI_Allreduce(&seconds, &result, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return result;
}

void measure_processes(MpiSession& session, const Exchange& exchange, Rates& rates) {
  const auto meet = [] { MPI_Barrier(MPI_COMM_WORLD); };
  const double gib = exchange.sent() / static_cast<double>(int64_t{1} << 30);
  Communicator& world = session.communicator(60);
  const int64_t stride = (exchange.bytes() + 4095) / 4096 * 4096;
  Arena arena(2 * stride, true);
  world.offer(arena.region());
  auto* x = reinterpret_cast<float*>(arena.at(0));
  auto* y = reinterpret_cast<float*>(arena.at(stride));
  exchange.fill(x);
  const auto ours = [&] {
    world.all_to_all(exchange.collective(), {x, exchange.x_shape}, {y, exchange.y_shape},
                     exchange.send, exchange.receive);
  };
  const auto mpi = [&] {
    const int count = static_cast<int>(exchange.bytes() / exchange.ranks);
    MPI_Alltoall(x, count, MPI_BYTE, y, count, MPI_BYTE, MPI_COMM_WORLD);
  };
  const auto copy = [&] { std::memcpy(y, x, static_cast<size_t>(exchange.sent())); };
  ours();
  exchange.check(y, "MPI transport");
  rates["autosp-onnx mpi"] = gib / slowest(median_seconds(meet, ours));
  rates["Open MPI"] = gib / slowest(median_seconds(meet, mpi));
  rates["memcpy"] = gib / slowest(median_seconds(meet, copy));
  world.offer({});
}

// Lets the calling thread run on every core.
void leave_binding() {
  cpu_set_t every;
  CPU_ZERO(&every);
  for (int core = 0; core < CPU_SETSIZE; ++core) CPU_SET(core, &every);
  sched_setaffinity(0, sizeof every, &every);
}

void measure_threads(int ranks, int64_t mebibytes, Rates& rates) {
  ThreadWorld world(ranks, 60);
  std::vector<double> seconds(static_cast<size_t>(ranks));
  const auto run_rank = [&](int rank) {
    leave_binding();
    const Exchange exchange(rank, ranks, mebibytes);
    Communicator& own = world.rank(rank);
    const int64_t stride = (exchange.bytes() + 4095) / 4096 * 4096;
    const Arena arena(2 * stride);
    auto* x = reinterpret_cast<float*>(arena.at(0));
    auto* y = reinterpret_cast<float*>(arena.at(stride));
    exchange.fill(x);
    std::vector<float> token(1);
    Collective barrier = exchange.collective();
    barrier.op = "AllReduce";
    const auto meet = [&] { own.all_reduce(barrier, {token.data(), {1}}, {token.data(), {1}}); };
    const auto ours = [&] {
      own.all_to_all(exchange.collective(), {x, exchange.x_shape}, {y, exchange.y_shape},
                     exchange.send, exchange.receive);
    };
    ours();
    exchange.check(y, "threads");
    seconds[static_cast<size_t>(rank)] = median_seconds(meet, ours);
    world.finish(rank);
  };
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run_rank, rank);
  }
  const Exchange exchange(0, ranks, mebibytes);
  rates["autosp-onnx threads"] =
      exchange.sent() / static_cast<double>(int64_t{1} << 30) / std::ranges::max(seconds);
}

// A barrier that leaves the cores to the others; MPI's own polls.
void wait_asleep() {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  for (int done = 0; done == 0;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
  }
}

int run(const std::vector<int64_t>& sizes) {
  MpiSession session;
  if (session.size() < 2) throw Error("one rank exchanges nothing: mpirun -np 2 bench_exchange");
  for (int64_t mebibytes : sizes) {
    Rates rates;
    measure_processes(session, Exchange(session.rank(), session.size(), mebibytes), rates);
    if (session.rank() == 0) measure_threads(session.size(), mebibytes, rates);
    wait_asleep();
    if (session.rank() != 0) continue;
    std::string text;
    for (const auto& [name, rate] : rates) text += fmt::format(", \"{}\": {:.2f}", name, rate);
    fmt::print("{{\"mib\": {}{}}}\n", mebibytes, text);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int64_t> sizes;
  try {
    for (int k = 1; k < argc; ++k) sizes.push_back(std::stoll(argv[k]));
    if (sizes.empty()) sizes = {1, 4, 16, 64};
    return run(sizes);
  } catch (const std::exception& failure) {
    fmt::print(stderr, "{}\n", failure.what());
    return 1;
  }
}
