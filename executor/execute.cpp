#include "executor/execute.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <optional>

#include "base/context.h"
#include "executor/arena_guard.h"
#include "executor/arena_session.h"
#include "executor/collective_queue.h"
#include "executor/memory.h"
#include "executor/run_on_device.h"
#include "executor/step_records.h"
#include "executor/workers.h"
#include "ir/operator_traits.h"

namespace autosp::executor {

namespace {

// Of the step that a thread runs, and what it has noted of those before.
struct ThreadState {
  std::vector<reference::Operand> operands;
  std::vector<reference::Result> results;
  std::vector<TraceEvent> events;
};

// What the programs of a rank share.
struct HostMemory {
  Arena arena;
  Workers workers;
  MappedFiles files;
  bool stays = false;  // pages stay resident after a run, for the next one
};

// The runs of one program: where its values are, and what is live.
class Execution {
 public:
  Execution(const Program& program, HostMemory& memory, Communicator& communicator,
            const ExecuteOptions& options)
      : program_(program),
        graph_(program.graph()),
        communicator_(communicator),
        options_(options),
        memory_(memory),
        guard_(memory.arena.at(0), program.memory().arena) {}

  // `collectives`: the thread that executes them; null: they are steps like others.
  RankResult run(const Arrays& feeds, CollectiveQueue* collectives) {
    collectives_ = collectives;
    result_ = {};
    result_.rank = communicator_.rank();
    result_.planned = program_.memory();
    locate_values(feeds);
    std::vector<double> seconds;
    for (int k = 0; k < options_.repeat; ++k) {
      try {
        seconds.push_back(run_step());
      } catch (...) {
        if (collectives_ != nullptr) communicator_.give_up(std::current_exception());
        throw;
      }
    }
    std::ranges::nth_element(seconds, seconds.begin() + (options_.repeat - 1) / 2);
    result_.seconds = seconds[static_cast<size_t>(options_.repeat - 1) / 2];
    return std::move(result_);
  }

  // Of the last run, which had these feeds, those that are `wanted`. Their pages, of an arena that
  // does not stay all, are given back.
  Arrays outputs(const Arrays& feeds, const std::function<bool(const ir::Output&)>& wanted) {
    if (!memory_.stays) keep_output_pages();
    Arrays outputs;
    std::map<int, ir::Tensor> copied;  // by buffer: several outputs may be one
    for (const ir::Output& output : graph_.outputs()) {
      if (!wanted(output)) continue;
      const Place& place = program_.place(output.value);
      const ir::Type& type = graph_.type(output.value);
      if (place.storage == Storage::kArena) {
        ir::Tensor& tensor = copied[place.buffer];
        if (tensor.dtype() == ir::DataType::kUndefined) tensor = moved_out(output.value);
        outputs[output.name] = tensor.reshaped(type.shape);
      } else if (place.storage == Storage::kExternal) {
        outputs[output.name] = copy(output.value);
      } else {
        const ir::Tensor& source = place.storage == Storage::kInput
                                       ? feeds.at(graph_.name_of(place.root))
                                       : graph_.constant(place.root);
        outputs[output.name] = source.reshaped(type.shape);
      }
    }
    return outputs;
  }

 private:
  // Every kernel once; seconds. Inputs that are not kept are never written to, so a program without
  // others can do this again.
  double run_step() {
    result_.collectives.clear();
    result_.exposed_seconds = 0;
    of_kernels_.events.clear();
    of_collectives_.events.clear();
    const auto begin = Clock::now();
    for (size_t step = 0; step < graph_.nodes().size(); ++step) {
      if (program_.is_view(step)) continue;
      if (collectives_ != nullptr) {
        run_beside_collectives(step);
      } else {
        guard_step(step);
        run_kernel(step);
      }
    }
    guard_.allow_all();
    if (collectives_ != nullptr) {
      wait_for_collectives(posted_);
      collectives_->reset();
      posted_ = 0;
    }
    const double seconds = seconds_since(begin);
    if (options_.events != nullptr) *options_.events = merged_events();
    return seconds;
  }

  void run_beside_collectives(size_t step) {
    if (ir::is_collective(graph_.nodes()[step])) {
      collectives_->post([this, step] { run_kernel(step); });
      ++posted_;
      return;
    }
    wait_for_collectives(program_.ended_before(step));
    run_kernel(step);
  }

  void wait_for_collectives(int count) {
    if (count == 0) return;
    const auto begin = Clock::now();
    collectives_->wait_for(count);
    result_.exposed_seconds += seconds_since(begin);
  }

  // Every value's address. Data is never written through the pointers of operands.
  void locate_values(const Arrays& feeds) {
    addresses_.resize(graph_.values().size());
    for (size_t k = 0; k < addresses_.size(); ++k) {
      const Place& place = program_.place(ValueId(k));
      switch (place.storage) {
        case Storage::kInput:
          addresses_[k] = feeds.at(graph_.name_of(place.root)).bytes().data();
          break;
        case Storage::kConstant:
          addresses_[k] = graph_.constant(place.root).bytes().data();
          break;
        case Storage::kExternal:
          addresses_[k] = memory_.files.data(graph_.value(place.root));
          break;
        case Storage::kArena:
          addresses_[k] = place.buffer < 0 ? nullptr : arena_address(place.buffer);
          break;
      }
    }
  }

  std::byte* arena_address(int buffer) const {
    return memory_.arena.at(program_.buffers()[static_cast<size_t>(buffer)].offset);
  }

  // In the rank's thread, or in that of its collectives.
  void run_kernel(size_t step) {
    const ir::Node& node = graph_.nodes()[step];
    ThreadState& arguments = ir::is_collective(node) ? of_collectives_ : of_kernels_;
    arguments.operands.clear();
    arguments.results.clear();
    for (ValueId id : node.inputs) {
      arguments.operands.push_back(
          id ? reference::Operand{graph_.type(id).dtype, &graph_.shape(id), addresses_[id.index()]}
             : reference::Operand{});
    }
    for (ValueId id : node.outputs) {
      arguments.results.push_back(id ? reference::Result{graph_.type(id).dtype, &graph_.shape(id),
                                                         arena_address(program_.place(id).buffer)}
                                     : reference::Result{});
    }
    const int scratch = program_.workspace(step);
    const KernelCall call{{node, arguments.operands, arguments.results},
                          scratch < 0 ? nullptr : arena_address(scratch),
                          &communicator_,
                          &memory_.workers};
    const int64_t bytes = ir::is_collective(node) ? bytes_sent(graph_, node, result_.rank) : 0;
    const auto begin = Clock::now();
    try {
      // Before the data move: whoever gives their memory away too early is found out.
      if (ir::is_collective(node)) options_.link.carry(bytes);
      program_.kernel(step)(call);
    } catch (Error& error) {
      throw in_step(error, graph_, node, result_.rank);
    }
    record(node, begin, bytes);
  }

  // Of the arena, the step may touch what it was given.
  void guard_step(size_t step) {
    if constexpr (!ArenaGuard::kActive) return;
    const ir::Node& node = graph_.nodes()[step];
    guard_.forbid_all();
    const auto allow = [&](int buffer) {
      if (buffer < 0) return;
      const Arena::Stretch given = stretch(buffer);
      guard_.allow(given.offset, given.size);
    };
    for (const auto* values : {&node.inputs, &node.outputs}) {
      for (ValueId id : *values) {
        if (id && program_.place(id).storage == Storage::kArena) allow(program_.place(id).buffer);
      }
    }
    allow(program_.workspace(step));
  }

  void record(const ir::Node& node, Clock::time_point begin, int64_t bytes) {
    const bool collective = ir::is_collective(node);
    if (!collective && options_.events == nullptr) return;
    const double duration = seconds_since(begin);
    if (collective) {
      result_.collectives.push_back({node.name, node.op, bytes, duration});
      if (collectives_ == nullptr) result_.exposed_seconds += duration;
    }
    if (options_.events == nullptr) return;
    const double start = std::chrono::duration<double>(begin - options_.epoch).count();
    (collective ? of_collectives_ : of_kernels_)
        .events.push_back({node.name, node.op, result_.rank, start, duration, bytes,
                           collectives_ != nullptr && collective});
  }

  // In the order in which they began.
  std::vector<TraceEvent> merged_events() {
    std::vector<TraceEvent> events;
    std::ranges::merge(of_kernels_.events, of_collectives_.events, std::back_inserter(events), {},
                       &TraceEvent::start, &TraceEvent::start);
    return events;
  }

  void keep_output_pages() {
    std::vector<Arena::Stretch> outputs;
    for (const ir::Output& output : graph_.outputs()) {
      const Place& place = program_.place(output.value);
      if (place.storage == Storage::kArena) outputs.push_back(stretch(place.buffer));
    }
    memory_.arena.keep_only(outputs);
  }

  // A copy. The pages of what was copied go, one output after the other, so that both never exist
  // as a whole.
  ir::Tensor moved_out(ValueId id) {
    ir::Tensor tensor = copy(id);
    if (memory_.stays) return tensor;
    if (communicator_.reads_in_place()) (void)communicator_.own_resident_peak();
    memory_.arena.release(stretch(program_.place(id).buffer));
    return tensor;
  }

  ir::Tensor copy(ValueId id) const {
    const ir::Type& type = graph_.type(id);
    const auto* bytes = static_cast<const std::byte*>(addresses_[id.index()]);
    return {type, {bytes, static_cast<size_t>(type.num_bytes())}};
  }

  Arena::Stretch stretch(int buffer) const {
    const ArenaBuffer& b = program_.buffers()[static_cast<size_t>(buffer)];
    return {b.offset, b.size};
  }

  const Program& program_;
  const ir::Graph& graph_;
  Communicator& communicator_;
  const ExecuteOptions& options_;
  HostMemory& memory_;
  ArenaGuard guard_;
  std::vector<const void*> addresses_;  // per value
  ThreadState of_kernels_;
  ThreadState of_collectives_;  // kernels and collectives may run in a thread each
  RankResult result_;
  int posted_ = 0;  // collectives, in this step
  CollectiveQueue* collectives_ = nullptr;
};

class HostSession final : public ArenaSession {
 public:
  HostSession(const std::vector<const Program*>& programs, Communicator& communicator,
              const ExecuteOptions& options)
      : ArenaSession(programs),
        communicator_(communicator),
        options_(options),
        memory_{.arena = Arena(programs.front()->memory().arena, communicator.reads_in_place()),
                .workers = Workers(programs.front()->workers()),
                .files = MappedFiles(options.data_folder),
                .stays = true} {
    for (const Program* program : programs) {
      runs_.try_emplace(program, *program, memory_, communicator, options_);
    }
  }
  ~HostSession() override {
    collectives_.reset();
    if (offered_) communicator_.withdraw();
  }

 private:
  RankResult run_program(const Program& program, const Arrays& feeds,
                         const Wanted& wanted) override {
    if (!offered_) communicator_.offer(memory_.arena.region());
    offered_ = true;
    Execution& execution = runs_.at(&program);
    RankResult result = run_alone(execution, feeds, program.overlaps());
    result.outputs = execution.outputs(feeds, wanted);
    return result;
  }
  void write(int64_t offset, std::span<const std::byte> bytes) override {
    std::ranges::copy(bytes, memory_.arena.at(offset));
  }
  void clear(int64_t offset, int64_t bytes) override {
    std::memset(memory_.arena.at(offset), 0, static_cast<size_t>(bytes));
  }
  void read(int64_t offset, std::span<std::byte> to) override {
    std::memcpy(to.data(), memory_.arena.at(offset), to.size());
  }
  void copy(int64_t from, int64_t to, int64_t bytes) override {
    std::memcpy(memory_.arena.at(to), memory_.arena.at(from), static_cast<size_t>(bytes));
  }

  // When it has failed, nothing of it goes on beside this thread.
  RankResult run_alone(Execution& execution, const Arrays& feeds, bool overlaps) {
    if (!overlaps) return execution.run(feeds, nullptr);
    if (!collectives_) collectives_.emplace();
    try {
      return execution.run(feeds, &*collectives_);
    } catch (...) {
      collectives_.reset();
      throw;
    }
  }

  Communicator& communicator_;
  const ExecuteOptions options_;
  HostMemory memory_;
  std::map<const Program*, Execution> runs_;
  bool offered_ = false;                        // its arena, to the other ranks
  std::optional<CollectiveQueue> collectives_;  // last: ended before what it uses goes
};

RankResult execute_on_host(const Program& program, const Arrays& feeds, Communicator& communicator,
                           const ExecuteOptions& options) {
  HostMemory memory{.arena = Arena(program.memory().arena, communicator.reads_in_place()),
                    .workers = Workers(program.workers()),
                    .files = MappedFiles(options.data_folder)};
  Execution execution(program, memory, communicator, options);
  std::optional<CollectiveQueue> collectives;  // last: ended before what it uses goes
  if (program.overlaps()) collectives.emplace();
  check_feeds(program.graph(), feeds);
  communicator.offer(memory.arena.region());
  RankResult result = execution.run(feeds, collectives ? &*collectives : nullptr);
  communicator.offer({});
  // Neither gives anything back before this point, so these are the most there was.
  result.arena_touched = memory.arena.touched_bytes();
  result.measured_peak = result.arena_touched + communicator.staging_bytes();
  result.outputs = execution.outputs(feeds, [](const ir::Output&) { return true; });
  return result;
}

}  // namespace

RankResult execute(const Program& program, const Arrays& feeds, Communicator& communicator,
                   const ExecuteOptions& options) {
  if (options.device != nullptr) {
    return make_device_session({&program}, communicator, options)->run(program, feeds);
  }
  return execute_on_host(program, feeds, communicator, options);
}

std::unique_ptr<Session> make_session(const std::vector<Program>& programs,
                                      Communicator& communicator, const ExecuteOptions& options) {
  AUTOSP_CHECK(options.repeat == 1, "a session's programs run {} times", options.repeat);
  std::vector<const Program*> pointers;
  for (const Program& program : programs) {
    AUTOSP_CHECK(program.memory().arena == programs.front().memory().arena &&
                     program.workers() == programs.front().workers(),
                 "programs of another arena or other workers");
    pointers.push_back(&program);
  }
  if (options.device != nullptr) return make_device_session(pointers, communicator, options);
  return std::make_unique<HostSession>(pointers, communicator, options);
}

}  // namespace autosp::executor
