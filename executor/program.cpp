#include "executor/program.h"

#include <algorithm>
#include <deque>

#include "executor/absorb_epilogues.h"
#include "executor/absorb_transposes.h"
#include "executor/fuse_elementwise.h"
#include "executor/kept_values.h"
#include "executor/overlap.h"
#include "ir/operator_traits.h"

namespace autosp::executor {

// Compiles the graph of one turn.
class Compiler {
 public:
  // `graph`: the turn's, made ready. `number`: the turn's, see KeptValues.
  Compiler(std::shared_ptr<const ir::Graph> graph, const Turn& turn, int number, KeptValues& kept,
           const KernelTable& kernels, const CompileOptions& options)
      : graph_(*graph),
        end_(static_cast<int>(graph_.nodes().size())),
        turn_(turn),
        number_(number),
        kept_(kept),
        kernels_(kernels),
        options_(options) {
    program_.graph_ = std::move(graph);
    program_.kept_outputs_ = turn.keeps;
    program_.workers_ = options.workers;
    if (!options.overlap) return;
    CollectiveDeadlines deadlines = collective_deadlines(graph_);
    program_.ended_before_ = std::move(deadlines.ended_before);
    waited_for_by_ = std::move(deadlines.waited_for_by);
  }

  // Bytes of the arena that the program works in.
  int64_t plan() {
    choose_kernels();
    find_last_uses();
    place_sources();
    find_kept_results();
    for (size_t step = 0; step < graph_.nodes().size(); ++step) place_results(step);
    leave_room_for_others();
    program_.memory_.working = assign_offsets(program_.buffers_);
    pass_on();
    return program_.memory_.working;
  }

  // Once everything that is kept has its place. `arena`: bytes of it all.
  Program finish(int64_t arena) {
    for (const auto& [name, buffer] : kept_buffers_) {
      ArenaBuffer& kept = buffer_at(buffer);
      if (kept.placing != ArenaBuffer::Placing::kApart) continue;
      kept.first = 0;
      kept.last = end_;
      kept.offset = kept_.at(name).offset;
    }
    program_.memory_.arena = arena;
    program_.gone_after_ = kept_.gone_after(number_);
    measure();
    return std::move(program_);
  }

 private:
  void choose_kernels() {
    for (const ir::Node& node : graph_.nodes()) {
      BoundKernel kernel = kernels_.find(graph_, node, options_.workers);
      if (!kernel) {
        throw Error("{}: there is no {} kernel for operator {}{}{}", graph_.describe(node),
                    kernels_.device(), node.domain, node.domain.empty() ? "" : "::", node.op)
            .note(node.inputs.empty() || !node.inputs[0]
                      ? "it has no operands"
                      : "its first operand is " + ir::to_string(graph_.type(node.inputs[0])))
            .help(
                "use operators and element types that the executor has kernels for "
                "(docs/executor.md)");
      }
      program_.kernels_.push_back(kernel);
    }
  }

  void place_sources() {
    program_.places_.resize(graph_.values().size());
    for (size_t k = 0; k < graph_.values().size(); ++k) {
      const ir::Value& value = graph_.values()[k];
      const int64_t bytes = value.type.num_bytes();
      switch (value.kind) {
        case ir::ValueKind::kInput:
          if (turn_.kept.contains(value.name)) {
            program_.places_[k] = {Storage::kArena, ValueId(), add_kept(value.name, last_use_[k])};
          } else {
            program_.places_[k] = {Storage::kInput, ValueId(k), -1};
            program_.memory_.inputs += bytes;
          }
          break;
        case ir::ValueKind::kConstant:
          program_.places_[k] = {Storage::kConstant, ValueId(k), -1};
          program_.memory_.constants += bytes;
          break;
        case ir::ValueKind::kExternal:
          program_.places_[k] = {Storage::kExternal, ValueId(k), -1};
          program_.memory_.external += bytes;
          break;
        case ir::ValueKind::kResult:
          break;
      }
    }
  }

  // The buffer of a kept value that is read until step `last`, or -1 for never.
  int add_kept(const std::string& name, int last) {
    const KeptValues::Value& value = kept_.at(name);
    const int buffer = add_buffer(value.bytes, 0, last);
    ArenaBuffer& added = buffer_at(buffer);
    if (value.passed_on) {
      added.placing = ArenaBuffer::Placing::kFixed;
      added.offset = value.offset;
      added.last = value.last_reader > number_ ? end_ : std::max(last, 0);
    } else {
      added.placing = ArenaBuffer::Placing::kApart;
    }
    kept_buffers_[name] = buffer;
    return buffer;
  }

  // The results that are next values of what has a place apart, themselves or by a view.
  void find_kept_results() {
    for (const ir::Output& output : graph_.outputs()) {
      const auto keep = turn_.keeps.find(output.name);
      if (keep == turn_.keeps.end() || kept_.at(keep->second).passed_on) continue;
      kept_results_.try_emplace(output.value, keep->second);
    }
    const auto& nodes = graph_.nodes();
    for (size_t step = nodes.size(); step-- > 0;) {
      if (!shares_view(nodes[step])) continue;
      const auto view = kept_results_.find(nodes[step].outputs[0]);
      if (view != kept_results_.end()) {
        kept_results_.try_emplace(nodes[step].inputs[0], view->second);
      }
    }
  }

  // What is passed on over this turn stays as it is.
  void leave_room_for_others() {
    for (const std::string& name : kept_.passing(number_)) {
      if (!kept_buffers_.contains(name)) add_kept(name, end_);
    }
  }

  // Each from a buffer of its own.
  void pass_on() {
    std::set<int> passed;
    for (const ir::Output& output : graph_.outputs()) {
      const auto keep = turn_.keeps.find(output.name);
      if (keep == turn_.keeps.end() || !kept_.at(keep->second).passed_on) continue;
      const Place& place = program_.place(output.value);
      if (place.storage == Storage::kArena && is_free(place.buffer) &&
          passed.insert(place.buffer).second) {
        kept_.pass_on(keep->second, buffer_at(place.buffer).offset);
      } else {
        kept_.keep_apart(keep->second);
      }
    }
  }

  // The last step that reads each value or a view of it; views pass their readers on to what they
  // show, so this walks the nodes backwards. Outputs are read by a step after the last.
  void find_last_uses() {
    const auto& nodes = graph_.nodes();
    last_use_.assign(graph_.values().size(), -1);
    for (const ir::Output& output : graph_.outputs()) last_use_[output.value.index()] = end_;
    for (size_t step = nodes.size(); step-- > 0;) {
      const ir::Node& node = nodes[step];
      const bool view = shares_view(node);
      for (size_t k = 0; k < node.inputs.size(); ++k) {
        if (!node.inputs[k]) continue;
        int& last = last_use_[node.inputs[k].index()];
        last = std::max(last, static_cast<int>(step));
        if (view && k == 0) last = std::max(last, last_use_[node.outputs[0].index()]);
      }
    }
  }

  bool shares_view(const ir::Node& node) const {
    return options_.share_memory && ir::is_view(node);
  }

  void place_results(size_t step) {
    const ir::Node& node = graph_.nodes()[step];
    const bool view = shares_view(node);
    program_.is_view_.push_back(view);
    program_.workspaces_.push_back(-1);
    if (view) {
      program_.places_[node.outputs[0].index()] = program_.places_[node.inputs[0].index()];
      return;
    }
    for (size_t r = 0; r < node.outputs.size(); ++r) {
      if (node.outputs[r]) place_result(step, r);
    }
    const BoundKernel& kernel = program_.kernels_[step];
    const int64_t scratch = kernel.on_host ? 0 : kernel.workspace_bytes;
    if (scratch > 0) {
      program_.workspaces_[step] =
          add_buffer(scratch, static_cast<int>(step), static_cast<int>(step));
    }
    if (options_.overlap && ir::is_collective(node)) hold_until_awaited(step);
  }

  void place_result(size_t step, size_t r) {
    const ValueId result = graph_.nodes()[step].outputs[r];
    const int last =
        options_.share_memory ? std::max(last_use_[result.index()], static_cast<int>(step)) : end_;
    int buffer = kept_buffer(step, r);
    if (buffer < 0) buffer = reusable_buffer(step, r);
    if (buffer < 0) {
      buffer = add_buffer(graph_.type(result).num_bytes(), static_cast<int>(step), last);
    }
    buffer_at(buffer).last = last;
    program_.places_[result.index()] = {Storage::kArena, ValueId(), buffer};
  }

  // What a collective reads and writes stays until a step has waited for it.
  void hold_until_awaited(size_t step) {
    const ir::Node& node = graph_.nodes()[step];
    for (const auto* values : {&node.inputs, &node.outputs}) {
      for (ValueId id : *values) {
        if (!id || program_.places_[id.index()].storage != Storage::kArena) continue;
        ArenaBuffer& buffer = buffer_at(program_.places_[id.index()].buffer);
        buffer.last = std::max(buffer.last, waited_for_by_[step]);
      }
    }
  }

  reference::Aliasing aliasing(size_t step) const { return program_.kernels_[step].aliasing; }
  bool elementwise(size_t step) const {
    return aliasing(step) == reference::Aliasing::kElementwise;
  }

  // Operands [first, second) may be written over by result r.
  std::pair<size_t, size_t> overwritable_operands(size_t step, size_t r) const {
    using enum reference::Aliasing;
    const ir::Node& node = graph_.nodes()[step];
    const size_t count = node.inputs.size();
    const reference::Aliasing kind = options_.share_memory ? aliasing(step) : kNone;
    if (kind == kUpdated) {
      const size_t own = updated_operand(node, r);
      return {std::min(own, count), std::min(own + 1, count)};
    }
    if (r > 0) return {0, 0};
    if (kind == kElementwise) return {0, count};
    if (kind == kOperandZero) return {0, std::min<size_t>(1, count)};
    if (kind == kOperandTwo) return {std::min<size_t>(2, count), std::min<size_t>(3, count)};
    return {0, 0};
  }

  // Of an optimizer, whose operands are rate and count, then n parameters, n gradients, and the
  // states, and whose results are parameters and states. One with too few operands has none; its
  // kernel refuses it.
  static size_t updated_operand(const ir::Node& node, size_t r) {
    const size_t fewest = 2 + node.outputs.size();
    if (node.inputs.size() < fewest) return node.inputs.size();
    const size_t n = node.inputs.size() - fewest;
    return 2 + r + (r < n ? 0 : n);
  }

  // The place of the kept value that result r is to be, or -1 where the old one is still read.
  int kept_buffer(size_t step, size_t r) {
    const auto found = kept_results_.find(graph_.nodes()[step].outputs[r]);
    if (found == kept_results_.end()) return -1;
    const auto known = kept_buffers_.find(found->second);
    const int buffer = known != kept_buffers_.end() ? known->second : add_kept(found->second, -1);
    const int last = buffer_at(buffer).last;
    const int now = static_cast<int>(step);
    if (last < now) return buffer;
    const auto [begin, end] = overwritable_operands(step, r);
    for (size_t k = begin; last == now && k < end; ++k) {
      if (overwritten_buffer(step, r, k) == buffer) return buffer;
    }
    return -1;
  }

  // A buffer that result r may take over: an operand's, read for the last time here.
  int reusable_buffer(size_t step, size_t r) const {
    const auto [begin, end] = overwritable_operands(step, r);
    for (size_t k = begin; k < end; ++k) {
      const int buffer = overwritten_buffer(step, r, k);
      if (buffer < 0) continue;
      const ArenaBuffer& old = program_.buffers_[static_cast<size_t>(buffer)];
      if (old.last == static_cast<int>(step) && old.placing != ArenaBuffer::Placing::kApart) {
        return buffer;
      }
    }
    return -1;
  }

  // The buffer of operand k, which is among those that result r may be written over, where it is
  // of the result's type and no other operand minds; or -1.
  int overwritten_buffer(size_t step, size_t r, size_t k) const {
    const ir::Node& node = graph_.nodes()[step];
    if (!node.inputs[k] || graph_.type(node.inputs[k]) != graph_.type(node.outputs[r])) return -1;
    const Place& place = program_.places_[node.inputs[k].index()];
    const bool may = place.storage == Storage::kArena && !read_otherwise(step, r, k, place.buffer);
    return may ? place.buffer : -1;
  }

  // Whether another operand than k reads the buffer in another shape or order than result r's.
  bool read_otherwise(size_t step, size_t r, size_t k, int buffer) const {
    const ir::Node& node = graph_.nodes()[step];
    for (size_t other = 0; other < node.inputs.size(); ++other) {
      if (other == k || !node.inputs[other]) continue;
      const Place& place = program_.places_[node.inputs[other].index()];
      if (place.storage != Storage::kArena || place.buffer != buffer) continue;
      if (!elementwise(step) || graph_.type(node.inputs[other]) != graph_.type(node.outputs[r])) {
        return true;
      }
    }
    return false;
  }

  ArenaBuffer& buffer_at(int buffer) { return program_.buffers_[static_cast<size_t>(buffer)]; }
  bool is_free(int buffer) const {
    return program_.buffers_[static_cast<size_t>(buffer)].placing == ArenaBuffer::Placing::kFree;
  }

  int add_buffer(int64_t size, int first, int last) {
    program_.buffers_.push_back({size, first, last});
    return static_cast<int>(program_.buffers_.size()) - 1;
  }

  void measure() {
    const size_t steps = graph_.nodes().size();
    std::vector<int64_t> change(steps + 2, 0);
    for (const ArenaBuffer& buffer : program_.buffers_) {
      change[static_cast<size_t>(buffer.first)] += buffer.size;
      change[static_cast<size_t>(buffer.last) + 1] -= buffer.size;
    }
    int64_t live = 0;
    for (size_t step = 0; step < steps; ++step) {
      live += change[step];
      if (live > program_.memory_.live_peak) {
        program_.memory_.live_peak = live;
        program_.memory_.peak_node = graph_.describe(graph_.nodes()[step]);
      }
    }
  }

  const ir::Graph& graph_;
  const int end_;  // number of steps
  const Turn& turn_;
  const int number_;
  KeptValues& kept_;
  const KernelTable& kernels_;
  const CompileOptions& options_;
  Program program_;
  std::map<std::string, int> kept_buffers_;      // by name
  std::map<ValueId, std::string> kept_results_;  // names of what has a place apart
  std::vector<int> last_use_;  // per value: a step, the number of steps for outputs, -1 for none
  std::vector<int> waited_for_by_;  // CollectiveDeadlines, where collectives overlap
};

namespace {

std::shared_ptr<const ir::Graph> made_ready(std::shared_ptr<const ir::Graph> graph,
                                            const KernelTable& kernels,
                                            const CompileOptions& options) {
  graph = absorb_transposes(graph, kernels);
  graph = absorb_epilogues(graph, kernels);
  if (options.fuse) graph = fuse_elementwise(graph, kernels);
  if (!options.overlap) return graph;
  return std::make_shared<const ir::Graph>(start_collectives_early(*graph));
}

}  // namespace

Program compile(std::shared_ptr<const ir::Graph> graph, const CompileOptions& options) {
  return std::move(compile_turns({{std::move(graph), {}, {}}}, options).front());
}

std::vector<Program> compile_turns(const std::vector<Turn>& turns, const CompileOptions& options) {
  const KernelTable& kernels = options.kernels != nullptr ? *options.kernels : cpu_kernels();
  KeptValues kept(turns);
  std::deque<Compiler> compilers;
  int64_t working = 0;
  for (const Turn& turn : turns) {
    const int number = static_cast<int>(compilers.size());
    compilers.emplace_back(made_ready(turn.graph, kernels, options), turn, number, kept, kernels,
                           options);
    working = std::max(working, compilers.back().plan());
  }
  const int64_t arena = kept.place_from(working);
  std::vector<Program> programs;
  for (Compiler& compiler : compilers) programs.push_back(compiler.finish(arena));
  return programs;
}

}  // namespace autosp::executor
