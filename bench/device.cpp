// What a device gives for attention, a product, a copy and an exchange, for scripts/gpu-check.
//
//   bench_device DEVICE attention B H HK S D SEEN TYPE      Attention and its gradient, through
//                                                           cuDNN and the own kernel (own_...)
//   bench_device DEVICE matmul M N K TYPE                   one product
//   bench_device DEVICE copy MIB                            within its memory
//   bench_device DEVICE chain ROWS COLUMNS TYPE             operators fused, and one by one
//   bench_device DEVICE exchange RANKS MIB                  Ulysses' all-to-all, operands of MIB
//
// SEEN: 0, a query sees all keys; 1, those up to itself; more, so many up to itself. DEVICE is
// cuda, or emulated, which shows that this program is right and nothing else. Prints a JSON object.
// Results are checked first: attention of up to 2048 tokens beside the own kernel.
#include <fmt/format.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "device_chains.h"
#include "executor/rank_device.h"
#include "executor/transport/boxes.h"
#include "executor/workers.h"
#include "executor/world.h"
#include "ir/builder.h"
#include "random_tensor.h"
#include "support/devices.h"

namespace {

using namespace autosp;
using namespace autosp::executor;
using Json = nlohmann::ordered_json;

constexpr double kTimeout = 300;
constexpr int kRepetitions = 5;
constexpr int64_t kLongestChecked = 2048;
constexpr int64_t kLongestOwn = 32768;  // that the own kernel is timed with too

ir::DataType type_named(const std::string& name) {
  for (const ir::DataType type :
       {ir::DataType::kFloat32, ir::DataType::kBFloat16, ir::DataType::kFloat16}) {
    if (ir::name_of(type) == name) return type;
  }
  throw Error("no type '{}'", name);
}

// A device's memory for as long as this lives.
class Memory {
 public:
  explicit Memory(Device& device) : device_(device) {}
  ~Memory() {
    for (std::byte* memory : taken_) device_.release(memory);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::byte* take(int64_t bytes) {
    taken_.push_back(device_.allocate(std::max<int64_t>(bytes, 256)));
    return taken_.back();
  }
  std::byte* holding(const ir::Tensor& tensor) {
    std::byte* memory = take(static_cast<int64_t>(tensor.bytes().size()));
    device_.upload(StreamId::kCompute, memory, tensor.bytes().data(),
                   static_cast<int64_t>(tensor.bytes().size()));
    return memory;
  }
  // Between -1 and 1; a block of numbers over and over where they are many.
  std::byte* random(const ir::Type& type, unsigned seed) {
    const ir::Tensor block =
        bench::random_tensor({type.dtype, {std::min(kBlock, count(type))}}, seed);
    std::byte* memory = take(type.num_bytes());
    const auto size = static_cast<int64_t>(block.bytes().size());
    for (int64_t at = 0; at < type.num_bytes(); at += size) {
      device_.upload(StreamId::kCompute, memory + at, block.bytes().data(),
                     std::min(size, type.num_bytes() - at));
    }
    return memory;
  }

 private:
  static constexpr int64_t kBlock = int64_t{1} << 22;
  static int64_t count(const ir::Type& type) { return ir::num_elements(type.shape); }

  Device& device_;
  std::vector<std::byte*> taken_;
};

ir::Tensor downloaded(Device& device, const ir::Type& type, const std::byte* from) {
  ir::Tensor tensor(type);
  device.download(StreamId::kCompute, tensor.mutable_bytes(), from, type.num_bytes());
  return tensor;
}

// The largest difference, of the largest entry.
double difference(const ir::Tensor& got, const ir::Tensor& want) {
  double largest = 0;
  double worst = 0;
  for (int64_t k = 0; k < want.num_elements(); ++k) {
    largest = std::max(largest, std::abs(want.value_as_double(k)));
    worst = std::max(worst, std::abs(got.value_as_double(k) - want.value_as_double(k)));
  }
  return worst / largest;
}

// A node whose operands and results lie on the device.
class NodeThere {
 public:
  NodeThere(Device& device, Communicator& host, const KernelTable& table, const ir::Graph& graph,
            const ir::Node& node, std::vector<std::byte*> operands, std::vector<std::byte*> results)
      : device_(device),
        host_(host),
        graph_(graph),
        node_(node),
        operand_data_(std::move(operands)),
        result_data_(std::move(results)),
        kernel_(table.find(graph, node, 1)),
        memory_(device),
        workspace_(memory_.take(kernel_.workspace_bytes)) {
    if (kernel_.on_host) throw Error("the device has no kernel for {}", node.op);
  }

  void queue() {
    std::vector<reference::Operand> operands;
    std::vector<reference::Result> results;
    for (size_t k = 0; k < node_.inputs.size(); ++k) {
      const ValueId id = node_.inputs[k];
      operands.push_back(
          id ? reference::Operand{graph_.type(id).dtype, &graph_.shape(id), operand_data_[k]}
             : reference::Operand{});
    }
    for (size_t k = 0; k < node_.outputs.size(); ++k) {
      const ValueId id = node_.outputs[k];
      results.push_back({graph_.type(id).dtype, &graph_.shape(id), result_data_[k]});
    }
    kernel_({{node_, operands, results},
             workspace_,
             &host_,
             &workers_,
             &device_,
             StreamId::kCompute,
             &graph_});
  }

 private:
  Device& device_;
  Communicator& host_;
  const ir::Graph& graph_;
  const ir::Node& node_;
  std::vector<std::byte*> operand_data_;
  std::vector<std::byte*> result_data_;
  BoundKernel kernel_;
  Memory memory_;
  std::byte* workspace_;
  Workers workers_{1};
};

// Median, after a first run that is not counted.
double seconds_of(Device& device, const std::function<void()>& queue) {
  queue();
  const auto begin = device.make_event();
  const auto end = device.make_event();
  std::vector<double> seconds;
  for (int k = 0; k < kRepetitions; ++k) {
    device.record(StreamId::kCompute, *begin);
    queue();
    device.record(StreamId::kCompute, *end);
    device.synchronize();
    seconds.push_back(device.seconds_between(*begin, *end));
  }
  std::ranges::nth_element(seconds, seconds.begin() + kRepetitions / 2);
  return seconds[kRepetitions / 2];
}

// --- Attention.

struct Heads {
  int64_t batch, query_heads, kv_heads, length, width;
  int64_t seen;  // 0: every query sees all keys; 1: those up to itself; more: so many, up to itself
  ir::DataType type;

  // Pairs of a query and a key that it sees, of a head.
  double pairs() const {
    const auto n = static_cast<double>(length);
    if (seen == 0) return n * n;
    const auto window = static_cast<double>(seen == 1 ? length : std::min(seen, length));
    return window * (window + 1) / 2 + (n - window) * window;
  }
};

class AttentionBench {
 public:
  AttentionBench(Backend& backend, Device& device, Communicator& host, const Heads& heads)
      : backend_(backend), device_(device), host_(host), heads_(heads), memory_(device) {
    make_graph();
    for (unsigned k = 0; k < 4; ++k) {
      operands_.push_back(memory_.random(k == 1 || k == 2 ? key_ : query_, k + 1));
    }
    for (const ir::Tensor& bound : bounds_) bound_data_.push_back(memory_.holding(bound));
  }

  Json measure() {
    Json report;
    const Pass best = pass();
    time(best, "", report);
    if (heads_.length <= kLongestOwn) {
      ::setenv("AUTOSP_CUDNN", "0", 1);
      const Pass own = pass();
      time(own, "own_", report);
      if (heads_.length <= kLongestChecked) {
        report["differences_from_own_kernel"] = differences(best, own);
      }
    }
    for (const std::string& notice : device_.notices()) fmt::print(stderr, "note: {}\n", notice);
    return report;
  }

 private:
  struct Pass {
    std::unique_ptr<NodeThere> forward, backward;
    std::vector<std::byte*> results;  // output, maxima, sums, three gradients
  };

  void make_graph() {
    query_ = {heads_.type, {heads_.batch, heads_.query_heads, heads_.length, heads_.width}};
    key_ = {heads_.type, {heads_.batch, heads_.kv_heads, heads_.length, heads_.width}};
    rows_ = {ir::DataType::kFloat32, {heads_.batch, heads_.query_heads, heads_.length}};
    ir::Builder build(graph_);
    std::vector<ValueId> ids;
    for (const ir::Type& type : {query_, key_, key_, query_}) {
      ids.push_back(graph_.add_input(fmt::format("x{}", ids.size()), type));
    }
    std::vector<ValueId> masks;
    if (heads_.seen > 0) {
      std::vector<int64_t> end(static_cast<size_t>(heads_.length));
      for (size_t i = 0; i < end.size(); ++i) end[i] = static_cast<int64_t>(i) + 1;
      std::vector<int64_t> begin = end;
      const int64_t window = heads_.seen == 1 ? heads_.length : heads_.seen;
      for (int64_t& first : begin) first = std::max<int64_t>(first - window, 0);
      for (const auto& bound : {begin, end}) {
        bounds_.push_back(ir::Tensor::int64s(bound).reshaped({1, heads_.length}));
      }
      masks = {ValueId(), build.constant(bounds_[0]), build.constant(bounds_[1])};
    }
    const ir::Attributes attributes{
        {"scale", static_cast<float>(1 / std::sqrt(static_cast<double>(heads_.width)))}};
    const auto add = [&](const char* op, std::vector<ValueId> inputs,
                         const std::vector<ir::Type>& types) {
      inputs.insert(inputs.end(), masks.begin(), masks.end());
      return build.node(op, inputs, types, attributes, std::string(ir::kAutospDomain));
    };
    const auto o = add("Attention", {ids[0], ids[1], ids[2]}, {query_, rows_, rows_});
    add("AttentionGrad", {ids[3], ids[0], ids[1], ids[2], o[0], o[1], o[2]}, {query_, key_, key_});
  }

  // With the kernels that are first choice now, run once.
  Pass pass() {
    Pass made;
    for (const ir::Type& type : {query_, rows_, rows_, query_, key_, key_}) {
      made.results.push_back(memory_.take(type.num_bytes()));
    }
    const auto& r = made.results;
    const auto with_masks = [&](std::vector<std::byte*> data) {
      if (bound_data_.empty()) return data;
      data.push_back(nullptr);
      data.insert(data.end(), bound_data_.begin(), bound_data_.end());
      return data;
    };
    const KernelTable table = device_kernels(backend_);
    made.forward = std::make_unique<NodeThere>(
        device_, host_, table, graph_, graph_.nodes()[0],
        with_masks({operands_[0], operands_[1], operands_[2]}), std::vector{r[0], r[1], r[2]});
    made.backward = std::make_unique<NodeThere>(
        device_, host_, table, graph_, graph_.nodes()[1],
        with_masks({operands_[3], operands_[0], operands_[1], operands_[2], r[0], r[1], r[2]}),
        std::vector{r[3], r[4], r[5]});
    made.forward->queue();
    made.backward->queue();
    device_.synchronize();
    return made;
  }

  void time(const Pass& pass, const std::string& whose, Json& report) {
    const double work = 4.0 *
                        static_cast<double>(heads_.batch * heads_.query_heads * heads_.width) *
                        heads_.pairs();
    const double forward = seconds_of(device_, [&] { pass.forward->queue(); });
    const double backward = seconds_of(device_, [&] { pass.backward->queue(); });
    report[whose + "forward_seconds"] = forward;
    report[whose + "backward_seconds"] = backward;
    report[whose + "forward_tflops"] = work / forward * 1e-12;
    report[whose + "backward_tflops"] = 2.5 * work / backward * 1e-12;
  }

  Json differences(const Pass& best, const Pass& own) {
    Json report;
    const std::vector<std::pair<const char*, size_t>> results = {
        {"output", 0}, {"query", 3}, {"key", 4}, {"value", 5}};
    for (const auto& [name, k] : results) {
      const ir::Type& type = k == 0 || k == 3 ? query_ : key_;
      const double worst = difference(downloaded(device_, type, best.results[k]),
                                      downloaded(device_, type, own.results[k]));
      report[name] = worst;
      if (!(worst < 0.05)) {
        throw Error("{}: differs from the own kernel by {} of its largest entry", name, worst);
      }
    }
    return report;
  }

  Backend& backend_;
  Device& device_;
  Communicator& host_;
  Heads heads_;
  Memory memory_;
  ir::Graph graph_;
  ir::Type query_, key_, rows_;
  std::vector<ir::Tensor> bounds_;  // begin and end
  std::vector<std::byte*> bound_data_;
  std::vector<std::byte*> operands_;  // query, key, value, output gradient
};

// --- A product and a copy.

void check_product(Device& device, const ir::Type& a_type, const ir::Type& b_type,
                   const ir::Type& c_type, const std::vector<std::byte*>& data) {
  const ir::Tensor a = downloaded(device, a_type, data[0]);
  const ir::Tensor b = downloaded(device, b_type, data[1]);
  const ir::Tensor c = downloaded(device, c_type, data[2]);
  const int64_t k_count = a_type.shape[1];
  const int64_t n = b_type.shape[1];
  for (int64_t t = 0; t < 64; ++t) {
    const int64_t row = t * 7919 % a_type.shape[0];
    const int64_t column = t * 104729 % n;
    double sum = 0;
    for (int64_t k = 0; k < k_count; ++k) {
      sum += a.value_as_double(row * k_count + k) * b.value_as_double(k * n + column);
    }
    const double got = c.value_as_double(row * n + column);
    if (!(std::abs(got - sum) <= 0.01 * std::sqrt(static_cast<double>(k_count)))) {
      throw Error("entry {}, {} of the product is {}, not {}", row, column, got, sum);
    }
  }
}

Json multiply(Backend& backend, Device& device, Communicator& host, int64_t m, int64_t n, int64_t k,
              ir::DataType type) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ir::Type a{type, {m, k}};
  const ir::Type b{type, {k, n}};
  const ir::Type c{type, {m, n}};
  build.matmul(graph.add_input("a", a), graph.add_input("b", b));
  Memory memory(device);
  const std::vector<std::byte*> data = {memory.random(a, 1), memory.random(b, 2),
                                        memory.take(c.num_bytes())};
  NodeThere product(device, host, device_kernels(backend), graph, graph.nodes().back(),
                    {data[0], data[1]}, {data[2]});
  const double seconds = seconds_of(device, [&] { product.queue(); });
  check_product(device, a, b, c, data);
  return {{"seconds", seconds},
          {"tflops", 2.0 * static_cast<double>(m) * static_cast<double>(n) *
                         static_cast<double>(k) / seconds * 1e-12}};
}

Json copy(Device& device, int64_t mebibytes) {
  const ir::Shape shape{mebibytes << 18U};
  Memory memory(device);
  const ir::Type type{ir::DataType::kFloat32, shape};
  std::byte* x = memory.random(type, 1);
  std::byte* y = memory.take(type.num_bytes());
  const double seconds = seconds_of(device, [&] {
    device.copy_box(StreamId::kCompute, sizeof(float), {x, shape}, whole_box(shape), {y, shape},
                    whole_box(shape));
  });
  return {{"seconds", seconds},
          {"bytes_per_second", 2.0 * static_cast<double>(type.num_bytes()) / seconds}};
}

// --- Exchanges of ranks that share this machine's devices.

constexpr int64_t kWidth = 64;
constexpr int64_t kHeadsPerRank = 4;

float element(int64_t rank, int64_t i) { return static_cast<float>((i * 7 + rank * 13) % 8191); }

class ExchangeBench {
 public:
  ExchangeBench(Backend& backend, int ranks, int64_t mebibytes)
      : backend_(backend), ranks_(ranks), heads_(kHeadsPerRank * ranks), together_(ranks) {
    tokens_ = (mebibytes << 20) / (4 * heads_ * kWidth);
  }

  Json measure() {
    run_world(ranks_, kTimeout, [&](int rank, Communicator& host) { run(rank, host); });
    const double sent = static_cast<double>(tokens_ * heads_ * kWidth * 4) * (ranks_ - 1) / ranks_;
    return {{"seconds", slowest_}, {"bytes_per_second_per_rank", sent / slowest_}};
  }

 private:
  void run(int rank, Communicator& host) {
    RankDevice held(backend_, host);
    Communicator* exchange = held.exchange();
    if (exchange == nullptr) throw Error("no exchange: {}", held.notice());
    Device& device = held.device();
    Memory memory(device);
    const ir::Type x{ir::DataType::kFloat32, {tokens_, heads_, kWidth}};
    const ir::Type y{ir::DataType::kFloat32, {tokens_ * ranks_, kHeadsPerRank, kWidth}};
    ir::Tensor own(x);
    for (int64_t i = 0; i < own.num_elements(); ++i) {
      own.mutable_values<float>()[static_cast<size_t>(i)] = element(rank, i);
    }
    std::byte* from = memory.holding(own);
    std::byte* to = memory.take(y.num_bytes());
    device.synchronize();
    exchange->use(&device);
    const auto n = static_cast<size_t>(ranks_);
    Collective all{"exchange", "AllToAll", {}, ir::DataType::kFloat32};
    for (int k = 0; k < ranks_; ++k) all.group.push_back(k);
    const auto send = slabs(x.shape, 1, std::vector<int64_t>(n, kHeadsPerRank));
    const auto receive = slabs(y.shape, 0, std::vector<int64_t>(n, tokens_));
    for (int k = 0; k <= kRepetitions; ++k) {
      together_.arrive_and_wait();
      const auto begin = std::chrono::steady_clock::now();
      for (int j = 0; j < kRounds; ++j) {
        exchange->all_to_all(all, {from, x.shape}, {to, y.shape}, send, receive);
      }
      device.synchronize();
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
      if (k > 0) note(elapsed.count() / kRounds);
    }
    together_.arrive_and_wait();
    exchange->use(nullptr);
    check(rank, downloaded(device, y, to));
  }

  void note(double seconds) {
    const std::lock_guard lock(mutex_);
    slowest_ = std::max(slowest_, seconds);
  }

  void check(int rank, const ir::Tensor& y) const {
    constexpr int64_t kRow = kHeadsPerRank * kWidth;
    for (int64_t t = 0; t < tokens_ * ranks_; ++t) {
      const int64_t begin = ((t % tokens_) * heads_ + rank * kHeadsPerRank) * kWidth;
      for (int64_t i = 0; i < kRow; ++i) {
        if (y.values<float>()[static_cast<size_t>(t * kRow + i)] !=
            element(t / tokens_, begin + i)) {
          throw Error("rank {} holds something else at token {}", rank, t);
        }
      }
    }
  }

  static constexpr int kRounds = 10;
  Backend& backend_;
  int ranks_;
  int64_t heads_;
  int64_t tokens_;
  std::barrier<> together_;
  std::mutex mutex_;
  double slowest_ = 0;
};

Json measure(const std::shared_ptr<Backend>& there, const std::string& what,
             const std::vector<std::string>& words) {
  Backend& backend = *there;
  const auto number = [&](size_t k) { return static_cast<int64_t>(std::stoll(words.at(k))); };
  if (what == "exchange") {
    return ExchangeBench(backend, static_cast<int>(number(0)), number(1)).measure();
  }
  if (what == "chain") {
    return bench::measure_chains(there, number(0), number(1), type_named(words.at(2)));
  }
  Json report;
  run_world(1, kTimeout, [&](int /*rank*/, Communicator& host) {
    RankDevice held(backend, host);
    Device& device = held.device();
    if (what == "attention") {
      report = AttentionBench(backend, device, host,
                              {number(0), number(1), number(2), number(3), number(4), number(5),
                               type_named(words.at(6))})
                   .measure();
    } else if (what == "matmul") {
      report =
          multiply(backend, device, host, number(0), number(1), number(2), type_named(words.at(3)));
    } else if (what == "copy") {
      report = copy(device, number(0));
    } else {
      throw Error("nothing is called '{}'", what);
    }
  });
  return report;
}

}  // namespace

int main(int count, char** words) try {
  if (count < 3) throw Error("bench_device DEVICE attention|matmul|copy|chain|exchange SIZES");
  const test::FoundDevice found = test::find_device(words[1]);
  if (found.backend == nullptr) throw Error("{}", found.reason);
  const Json report = measure(found.backend, words[2], {words + 3, words + count});
  fmt::print("{}\n", report.dump());
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
