#include "executor/execute.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>

#include "base/context.h"
#include "executor/arena_guard.h"
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

// The run of one program: where its values are, and what is live.
class Execution {
 public:
  Execution(const Program& program, const Arrays& feeds, Communicator& communicator,
            const ExecuteOptions& options)
      : program_(program),
        graph_(program.graph()),
        feeds_(feeds),
        communicator_(communicator),
        options_(options),
        arena_(program.memory().arena, communicator.reads_in_place()),
        guard_(arena_.at(0), program.memory().arena),
        workers_(program.workers()),
        files_(options.data_folder) {
    if (program.overlaps()) collectives_.emplace();
  }

  RankResult run() {
    check_feeds(graph_, feeds_);
    result_.rank = communicator_.rank();
    result_.planned = program_.memory();
    locate_values();
    communicator_.offer(arena_.region());
    std::vector<double> seconds;
    for (int k = 0; k < options_.repeat; ++k) {
      try {
        seconds.push_back(run_step());
      } catch (...) {
        if (collectives_) communicator_.give_up(std::current_exception());
        throw;
      }
    }
    std::ranges::nth_element(seconds, seconds.begin() + (options_.repeat - 1) / 2);
    result_.seconds = seconds[static_cast<size_t>(options_.repeat - 1) / 2];
    communicator_.offer({});
    // Neither gives anything back before this point, so these are the most there was.
    result_.arena_touched = arena_.touched_bytes();
    result_.measured_peak = result_.arena_touched + communicator_.staging_bytes();
    collect_outputs();
    return std::move(result_);
  }

 private:
  // Every kernel once; seconds. Inputs are never written to, so this can be done again.
  double run_step() {
    result_.collectives.clear();
    result_.exposed_seconds = 0;
    of_kernels_.events.clear();
    of_collectives_.events.clear();
    const auto begin = Clock::now();
    for (size_t step = 0; step < graph_.nodes().size(); ++step) {
      if (program_.is_view(step)) continue;
      if (collectives_) {
        run_beside_collectives(step);
      } else {
        guard_step(step);
        run_kernel(step);
      }
    }
    guard_.allow_all();
    if (collectives_) {
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
  void locate_values() {
    addresses_.resize(graph_.values().size());
    for (size_t k = 0; k < addresses_.size(); ++k) {
      const Place& place = program_.place(ValueId(k));
      switch (place.storage) {
        case Storage::kInput:
          addresses_[k] = feeds_.at(graph_.name_of(place.root)).bytes().data();
          break;
        case Storage::kConstant:
          addresses_[k] = graph_.constant(place.root).bytes().data();
          break;
        case Storage::kExternal:
          addresses_[k] = files_.data(graph_.value(place.root));
          break;
        case Storage::kArena:
          addresses_[k] = place.buffer < 0 ? nullptr : arena_address(place.buffer);
          break;
      }
    }
  }

  std::byte* arena_address(int buffer) const {
    return arena_.at(program_.buffers()[static_cast<size_t>(buffer)].offset);
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
                          &workers_};
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
      if (!collectives_) result_.exposed_seconds += duration;
    }
    if (options_.events == nullptr) return;
    const double start = std::chrono::duration<double>(begin - options_.epoch).count();
    (collective ? of_collectives_ : of_kernels_)
        .events.push_back(
            {node.name, node.op, result_.rank, start, duration, bytes, collectives_ && collective});
  }

  // In the order in which they began.
  std::vector<TraceEvent> merged_events() {
    std::vector<TraceEvent> events;
    std::ranges::merge(of_kernels_.events, of_collectives_.events, std::back_inserter(events), {},
                       &TraceEvent::start, &TraceEvent::start);
    return events;
  }

  // Copies the outputs, so that the arena can go. Its pages go one output after the other, so that
  // both never exist as a whole.
  void collect_outputs() {
    std::vector<Arena::Stretch> outputs;
    for (const ir::Output& output : graph_.outputs()) {
      const Place& place = program_.place(output.value);
      if (place.storage == Storage::kArena) outputs.push_back(stretch(place.buffer));
    }
    arena_.keep_only(outputs);
    std::map<int, ir::Tensor> copied;  // by buffer: several outputs may be one
    for (const ir::Output& output : graph_.outputs()) {
      const Place& place = program_.place(output.value);
      const ir::Type& type = graph_.type(output.value);
      if (place.storage == Storage::kArena) {
        ir::Tensor& tensor = copied[place.buffer];
        if (tensor.dtype() == ir::DataType::kUndefined) {
          tensor = copy(output.value);
          if (communicator_.reads_in_place()) (void)communicator_.own_resident_peak();
          arena_.release(stretch(place.buffer));
        }
        result_.outputs[output.name] = tensor.reshaped(type.shape);
      } else if (place.storage == Storage::kExternal) {
        result_.outputs[output.name] = copy(output.value);
      } else {
        const ir::Tensor& source = place.storage == Storage::kInput
                                       ? feeds_.at(graph_.name_of(place.root))
                                       : graph_.constant(place.root);
        result_.outputs[output.name] = source.reshaped(type.shape);
      }
    }
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
  const Arrays& feeds_;
  Communicator& communicator_;
  const ExecuteOptions& options_;
  Arena arena_;
  ArenaGuard guard_;
  Workers workers_;
  MappedFiles files_;
  std::vector<const void*> addresses_;  // per value
  ThreadState of_kernels_;
  ThreadState of_collectives_;  // kernels and collectives may run in a thread each
  RankResult result_;
  int posted_ = 0;                              // collectives, in this step
  std::optional<CollectiveQueue> collectives_;  // last: ended before what it uses goes
};

}  // namespace

RankResult execute(const Program& program, const Arrays& feeds, Communicator& communicator,
                   const ExecuteOptions& options) {
  if (options.device != nullptr) return run_on_device(program, feeds, communicator, options);
  return Execution(program, feeds, communicator, options).run();
}

}  // namespace autosp::executor
