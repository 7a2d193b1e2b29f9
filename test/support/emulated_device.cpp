#include "support/emulated_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>

#include "base/error.h"
#include "cuda/kernels/boxes.h"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/matmul_problem.h"
#include "cuda/kernels/rows.h"
#include "executor/absorb_epilogues.h"
#include "executor/transport/checked.h"
#include "support/emulated_chains.h"

namespace autosp::test {

namespace {

using executor::Device;
using executor::DeviceEvent;
using executor::StreamId;

// All memory of all emulated devices of this process. One thread at a time runs queued work.
class World {
 public:
  std::recursive_mutex mutex;

  std::byte* map(int64_t bytes) {
    const std::lock_guard lock(mutex);
    void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    AUTOSP_CHECK(memory != MAP_FAILED, "no {} bytes", bytes);
    std::memset(memory, 0xCD, static_cast<size_t>(bytes));
    regions_[memory] = bytes;
    if (depth_ == 0) mprotect(memory, static_cast<size_t>(bytes), PROT_NONE);
    return static_cast<std::byte*>(memory);
  }
  void unmap(std::byte* memory) {
    const std::lock_guard lock(mutex);
    munmap(memory, static_cast<size_t>(regions_.at(memory)));
    regions_.erase(memory);
  }

  // With the mutex held: device memory can be touched while one of these lives.
  class Open {
   public:
    explicit Open(World& world) : world_(world) {
      if (world_.depth_++ == 0) world_.protect(PROT_READ | PROT_WRITE);
    }
    ~Open() {
      if (--world_.depth_ == 0) world_.protect(PROT_NONE);
    }
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;

   private:
    World& world_;
  };

 private:
  void protect(int access) {
    for (const auto& [memory, bytes] : regions_) {
      mprotect(memory, static_cast<size_t>(bytes), access);
    }
  }

  std::map<void*, int64_t> regions_;
  int depth_ = 0;
};

World& world() {
  static World the_world;
  return the_world;
}

using Work = std::vector<std::function<void()>>;

// Work in order, from `begin` on not yet done.
struct Stream {
  Work work;
  size_t begin = 0;

  void run_until(size_t end) {
    while (begin < end) {
      const std::function<void()> next = std::move(work[begin]);
      ++begin;
      next();
    }
  }
};

// Where an event was recorded last. A captured step keeps it when the event itself goes.
struct Mark {
  std::shared_ptr<Stream> stream;  // null: not recorded yet
  size_t position = 0;
  double seconds = 0;
};

struct EmulatedEvent final : DeviceEvent {
  std::shared_ptr<Mark> mark = std::make_shared<Mark>();
};

const std::shared_ptr<Mark>& mark_of(DeviceEvent& event) {
  return static_cast<EmulatedEvent&>(event).mark;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct EmulatedStep final : executor::CapturedStep {
  explicit EmulatedStep(EmulatedCounts& all) : counts(all) { ++counts.kept; }
  ~EmulatedStep() override { --counts.kept; }

  EmulatedCounts& counts;
  Work calls;
};

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(const EmulatedOptions& options, EmulatedCounts& counts,
                 const EmulatedChains& chains, int rank, bool fails)
      : options_(options),
        counts_(counts),
        chains_(chains),
        rank_(rank),
        fails_(fails),
        faults_(world().map(kPage)) {
    const std::lock_guard lock(world().mutex);
    const World::Open open(world());
    std::memset(faults_, 0, kPage);
  }
  ~EmulatedDevice() override {
    discard();
    world().unmap(faults_);
    for (const auto& [memory, bytes] : allocated_) world().unmap(memory);
  }

  std::byte* allocate(int64_t bytes) override {
    const int64_t live = counts_.live_bytes;
    if (live + bytes > options_.memory) {
      throw Error("the device has no room for {} bytes", bytes)
          .note(fmt::format("{} of {} are in use", live, options_.memory))
          .help("shard over more ranks");
    }
    std::byte* memory = world().map(bytes);
    allocated_[memory] = bytes;
    counts_.live_bytes += bytes;
    ++counts_.allocations;
    return memory;
  }
  void release(std::byte* memory) override {
    discard();
    counts_.live_bytes -= allocated_.at(memory);
    allocated_.erase(memory);
    world().unmap(memory);
  }
  Memory memory() const override { return {options_.memory - counts_.live_bytes, options_.memory}; }

  void clear(StreamId stream, std::byte* to, int64_t bytes) override {
    push(stream, [to, bytes] { std::memset(to, 0, static_cast<size_t>(bytes)); });
  }
  void upload(StreamId stream, std::byte* to, const void* from, int64_t bytes) override {
    AUTOSP_CHECK(capturing_ == nullptr, "an upload is captured: it would bring the same each time");
    ++counts_.uploads;
    const auto* begin = static_cast<const std::byte*>(from);
    push(stream, [to, copy = std::vector<std::byte>(begin, begin + bytes)] {
      std::memcpy(to, copy.data(), copy.size());
    });
  }
  void download(StreamId stream, void* to, const std::byte* from, int64_t bytes) override {
    AUTOSP_CHECK(capturing_ == nullptr, "a download is captured");
    ++counts_.downloads;
    run_all(stream);
    const std::lock_guard lock(world().mutex);
    const World::Open open(world());
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }

  std::unique_ptr<DeviceEvent> make_event() override { return std::make_unique<EmulatedEvent>(); }
  void record(StreamId stream, DeviceEvent& event) override { record(stream, mark_of(event)); }
  void wait(StreamId stream, DeviceEvent& event) override { wait(stream, mark_of(event)); }
  double seconds_between(DeviceEvent& from, DeviceEvent& to) override {
    return mark_of(to)->seconds - mark_of(from)->seconds;
  }
  void synchronize() override {
    AUTOSP_CHECK(capturing_ == nullptr, "the host waits while work is captured");
    run_all(StreamId::kCompute);
    run_all(StreamId::kExchange);
  }

  void copy_box(StreamId stream, size_t element_size, const executor::ConstBuffer& x,
                const executor::Box& from, const executor::Buffer& y,
                const executor::Box& to) override {
    if (fails_) throw Error("the boxes of rank {} are lost", rank_);
    kernels::copy_box({*this, stream}, element_size, x, from, y, to);
  }
  void sum_boxes(StreamId stream, ir::DataType dtype, std::span<const std::byte* const> terms,
                 const ir::Shape& shape, const executor::Box& box, std::byte* out) override {
    if (fails_) throw Error("the boxes of rank {} are lost", rank_);
    kernels::sum_boxes({*this, stream}, dtype, terms, shape, box, out);
  }

  int32_t* faults() override { return reinterpret_cast<int32_t*>(faults_); }

  std::unique_ptr<executor::CapturedStep> capture(const std::function<void()>& queue) override {
    if (!options_.captures) {
      has_refused_ = true;
      return nullptr;
    }
    auto step = std::make_unique<EmulatedStep>(counts_);
    capturing_ = &step->calls;
    try {
      queue();
    } catch (...) {
      capturing_ = nullptr;
      throw;
    }
    capturing_ = nullptr;
    return step;
  }
  void replay(executor::CapturedStep& step) override {
    ++counts_.replays;
    for (const auto& call : static_cast<EmulatedStep&>(step).calls) call();
  }
  std::vector<std::string> notices() const override {
    std::vector<std::string> notices = chains_.notices();
    if (has_refused_) notices.emplace_back("a step cannot be kept");
    return notices;
  }

  void push(StreamId stream, std::function<void()> work) {
    if (capturing_ != nullptr) {
      capturing_->emplace_back([this, stream, work] { push(stream, work); });
      return;
    }
    const std::lock_guard lock(world().mutex);
    stream_at(stream)->work.push_back(std::move(work));
    if (stream == StreamId::kExchange && options_.early_exchange) run_all(stream);
  }
  void count_launch() { ++counts_.launches; }
  kernels::ThreadOrder order() const { return {options_.backwards}; }

 private:
  static constexpr int64_t kPage = 4096;

  void record(StreamId stream, const std::shared_ptr<Mark>& mark) {
    if (capturing_ != nullptr) {
      capturing_->emplace_back([this, stream, mark] { record(stream, mark); });
      return;
    }
    const std::lock_guard lock(world().mutex);
    push(stream, [mark] { mark->seconds = now(); });
    mark->stream = stream_at(stream);
    mark->position = mark->stream->work.size();
  }
  void wait(StreamId stream, const std::shared_ptr<Mark>& mark) {
    if (capturing_ != nullptr) {
      capturing_->emplace_back([this, stream, mark] { wait(stream, mark); });
      return;
    }
    const std::lock_guard lock(world().mutex);
    AUTOSP_CHECK(mark->stream != nullptr, "an event is waited for that was never recorded");
    push(stream, [from = mark->stream, position = mark->position] { from->run_until(position); });
  }
  std::shared_ptr<Stream>& stream_at(StreamId stream) {
    return streams_[static_cast<size_t>(stream)];
  }
  // What a run that failed has left; the others have waited for theirs. Work that waits for another
  // stream holds that stream: two that wait for each other would stay for ever.
  void discard() {
    const std::lock_guard lock(world().mutex);
    for (const auto& stream : streams_) {
      std::fill(stream->work.begin() + static_cast<int64_t>(stream->begin), stream->work.end(),
                nullptr);
      stream->begin = stream->work.size();
    }
  }
  void run_all(StreamId stream) {
    const std::lock_guard lock(world().mutex);
    const World::Open open(world());
    Stream& own = *stream_at(stream);
    own.run_until(own.work.size());
  }

  const EmulatedOptions& options_;
  EmulatedCounts& counts_;
  const EmulatedChains& chains_;
  const int rank_;
  const bool fails_;  // in collectives
  std::byte* faults_;
  std::map<std::byte*, int64_t> allocated_;
  std::shared_ptr<Stream> streams_[2] = {std::make_shared<Stream>(), std::make_shared<Stream>()};
  Work* capturing_ = nullptr;  // where what is queued goes instead
  bool has_refused_ = false;
};

// Between ranks that have nothing to exchange.
class NothingToExchange final : public executor::CheckedCommunicator {
 public:
  explicit NothingToExchange(executor::Communicator& host) : host_(host) {}
  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  bool use(Device* /*device*/) override { return true; }

 private:
  [[noreturn]] static void fail() { throw Error("nothing was to be exchanged"); }
  void exchange(const executor::Collective&, const executor::ConstBuffer&, const executor::Buffer&,
                const std::vector<executor::Box>&, const std::vector<executor::Box>&) override {
    fail();
  }
  void reduce_boxes(const executor::Collective&, const executor::ConstBuffer&,
                    const executor::Buffer&, const std::vector<executor::Box>&) override {
    fail();
  }
  void reduce_all(const executor::Collective&, const std::byte*, std::byte*, int64_t) override {
    fail();
  }

  executor::Communicator& host_;
};

// As where cuBLASLt refuses an epilogue: a product, then a kernel for the rest.
void multiply_then_finish(const executor::KernelCall& call) {
  const kernels::MatmulProblem whole = kernels::matmul_problem(call);
  kernels::MatmulProblem product = whole;
  product.bias = nullptr;
  product.relu = false;
  kernels::multiply_by_threads(call, product);
  kernels::finish_product(call, whole);
}

}  // namespace

namespace {

// A row's maximum and sum as the logarithm of both, and 1; rows that see nothing keep theirs.
struct Join {
  float* maxima;
  float* sums;
  void operator()(int64_t row) const {
    if (sums[row] == 0) return;
    maxima[row] += std::log(sums[row]);
    sums[row] = 1;
  }
};

const executor::KernelRow& own_attention() {
  return *std::ranges::find(kernels::attention_rows(), "Attention", &executor::KernelRow::op);
}

bool keeps_joint_statistics(const ir::Graph& graph, const ir::Node& node) {
  return node.attributes.get_int("joint_statistics", 0) != 0 &&
         own_attention().accepts(graph, node);
}

void attention_with_joint_statistics(const executor::KernelCall& call) {
  own_attention().function(call);
  const auto& maxima = call.call.results[1];
  kernels::launch(
      kernels::Queue(call), ir::num_elements(*maxima.shape),
      Join{static_cast<float*>(maxima.data), static_cast<float*>(call.call.results[2].data)});
}

}  // namespace

EmulatedBackend::EmulatedBackend(EmulatedOptions options)
    : options_(std::move(options)), chains_(std::make_unique<EmulatedChains>(options_.compiles)) {
  if (options_.joint_statistics) {
    rows_.push_back({ir::kAutospDomain, "Attention", keeps_joint_statistics,
                     attention_with_joint_statistics, own_attention().workspace});
  }
  if (options_.refuses_epilogues) {
    rows_.push_back({ir::kAutospDomain, executor::kFusedMatMul, nullptr, multiply_then_finish,
                     nullptr, reference::Aliasing::kOperandTwo});
  }
  for (const executor::KernelRow& row : kernels::own_rows()) {
    if (!options_.missing.contains(std::string(row.op))) rows_.push_back(row);
  }
  rows_.push_back(chains::chain_row(make_chain));
}

EmulatedBackend::~EmulatedBackend() = default;

std::function<void(const executor::KernelCall&)> EmulatedBackend::make_chain(
    const executor::Backend& backend, const ir::Graph& graph, const ir::Node& chain) {
  return chains::make_chain(*static_cast<const EmulatedBackend&>(backend).chains_, graph, chain);
}

std::unique_ptr<Device> EmulatedBackend::open(int rank) {
  return std::make_unique<EmulatedDevice>(options_, counts_, *chains_, rank, rank == failing_rank_);
}

std::unique_ptr<executor::Communicator> EmulatedBackend::connect(Device& /*device*/,
                                                                 executor::Communicator& host,
                                                                 std::string& notice) {
  if (options_.joins) return std::make_unique<NothingToExchange>(host);
  notice = "emulated devices do not reach other processes";
  return nullptr;
}

}  // namespace autosp::test

namespace autosp::kernels {

size_t most_shared() { return kMostShared; }

void enqueue(const Queue& queue, std::function<void(ThreadOrder)> work) {
  auto& device = static_cast<test::EmulatedDevice&>(*queue.device);
  device.count_launch();
  device.push(queue.stream, [work = std::move(work), order = device.order()] { work(order); });
}

}  // namespace autosp::kernels
