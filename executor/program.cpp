#include "executor/program.h"

#include <algorithm>
#include <array>

#include "executor/absorb_epilogues.h"
#include "executor/absorb_transposes.h"
#include "executor/fuse_elementwise.h"
#include "executor/overlap.h"
#include "ir/operator_traits.h"

namespace autosp::executor {

class Compiler {
 public:
  Compiler(std::shared_ptr<const ir::Graph> graph, const KernelTable& kernels,
           const CompileOptions& options)
      : graph_(*graph), kernels_(kernels), options_(options) {
    program_.graph_ = std::move(graph);
    program_.workers_ = options.workers;
    if (!options.overlap) return;
    CollectiveDeadlines deadlines = collective_deadlines(graph_);
    program_.ended_before_ = std::move(deadlines.ended_before);
    waited_for_by_ = std::move(deadlines.waited_for_by);
  }

  Program compile() {
    choose_kernels();
    place_sources();
    find_last_uses();
    for (size_t step = 0; step < graph_.nodes().size(); ++step) place_results(step);
    program_.memory_.arena = assign_offsets(program_.buffers_);
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
          program_.places_[k] = {Storage::kInput, ValueId(k), -1};
          program_.memory_.inputs += bytes;
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

  // The last step that reads each value or a view of it; views pass their readers on to what they
  // show, so this walks the nodes backwards. Outputs are read by a step after the last.
  void find_last_uses() {
    const auto& nodes = graph_.nodes();
    const int end = static_cast<int>(nodes.size());
    last_use_.assign(graph_.values().size(), -1);
    for (const ir::Output& output : graph_.outputs()) last_use_[output.value.index()] = end;
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
    for (ValueId result : node.outputs) {
      if (!result) continue;
      Place& place = program_.places_[result.index()];
      const int end = static_cast<int>(graph_.nodes().size());
      const int last =
          options_.share_memory ? std::max(last_use_[result.index()], static_cast<int>(step)) : end;
      const int reused = result == node.outputs[0] ? reusable_buffer(step) : -1;
      if (reused >= 0) {
        place = {Storage::kArena, ValueId(), reused};
        program_.buffers_[static_cast<size_t>(reused)].last = last;
      } else {
        place = {Storage::kArena, ValueId(),
                 add_buffer(graph_.type(result).num_bytes(), static_cast<int>(step), last)};
      }
    }
    const BoundKernel& kernel = program_.kernels_[step];
    const int64_t scratch = kernel.on_host ? 0 : kernel.workspace_bytes;
    if (scratch > 0) {
      program_.workspaces_[step] =
          add_buffer(scratch, static_cast<int>(step), static_cast<int>(step));
    }
    if (options_.overlap && ir::is_collective(node)) hold_until_awaited(step);
  }

  // What a collective reads and writes stays until a step has waited for it.
  void hold_until_awaited(size_t step) {
    const ir::Node& node = graph_.nodes()[step];
    for (const auto* values : {&node.inputs, &node.outputs}) {
      for (ValueId id : *values) {
        if (!id || program_.places_[id.index()].storage != Storage::kArena) continue;
        ArenaBuffer& buffer =
            program_.buffers_[static_cast<size_t>(program_.places_[id.index()].buffer)];
        buffer.last = std::max(buffer.last, waited_for_by_[step]);
      }
    }
  }

  reference::Aliasing aliasing(size_t step) const { return program_.kernels_[step].aliasing; }
  bool elementwise(size_t step) const {
    return aliasing(step) == reference::Aliasing::kElementwise;
  }

  // Operands [first, second) may be written over by result 0.
  std::pair<size_t, size_t> overwritable_operands(size_t step) const {
    const size_t count = graph_.nodes()[step].inputs.size();
    switch (aliasing(step)) {
      case reference::Aliasing::kNone:
        break;
      case reference::Aliasing::kElementwise:
        return {0, count};
      case reference::Aliasing::kOperandZero:
        return {0, std::min<size_t>(1, count)};
      case reference::Aliasing::kOperandTwo:
        return {std::min<size_t>(2, count), std::min<size_t>(3, count)};
    }
    return {0, 0};
  }

  // A buffer that result 0 may take over: an operand's, read for the last time here, and of the
  // result's type.
  int reusable_buffer(size_t step) const {
    const ir::Node& node = graph_.nodes()[step];
    if (!options_.share_memory) return -1;
    const auto [begin, end] = overwritable_operands(step);
    for (size_t k = begin; k < end; ++k) {
      if (!node.inputs[k] || graph_.type(node.inputs[k]) != graph_.type(node.outputs[0])) continue;
      const Place& place = program_.places_[node.inputs[k].index()];
      if (place.storage != Storage::kArena) continue;
      if (program_.buffers_[static_cast<size_t>(place.buffer)].last != static_cast<int>(step)) {
        continue;
      }
      if (!read_otherwise(step, k, place.buffer)) return place.buffer;
    }
    return -1;
  }

  // Whether another operand than k reads the buffer in another shape or order than the result's.
  bool read_otherwise(size_t step, size_t k, int buffer) const {
    const ir::Node& node = graph_.nodes()[step];
    for (size_t other = 0; other < node.inputs.size(); ++other) {
      if (other == k || !node.inputs[other]) continue;
      const Place& place = program_.places_[node.inputs[other].index()];
      if (place.storage != Storage::kArena || place.buffer != buffer) continue;
      if (!elementwise(step) || graph_.type(node.inputs[other]) != graph_.type(node.outputs[0])) {
        return true;
      }
    }
    return false;
  }

  int add_buffer(int64_t size, int first, int last) {
    program_.buffers_.push_back({size, first, last, 0});
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
  const KernelTable& kernels_;
  const CompileOptions& options_;
  Program program_;
  std::vector<int> last_use_;  // per value: a step, the number of steps for outputs, -1 for none
  std::vector<int> waited_for_by_;  // CollectiveDeadlines, where collectives overlap
};

Program compile(std::shared_ptr<const ir::Graph> graph, const CompileOptions& options) {
  const KernelTable& kernels = options.kernels != nullptr ? *options.kernels : cpu_kernels();
  graph = absorb_transposes(graph, kernels);
  graph = absorb_epilogues(graph, kernels);
  if (options.fuse) graph = fuse_elementwise(graph, kernels);
  if (options.overlap) {
    graph = std::make_shared<const ir::Graph>(start_collectives_early(*graph));
  }
  return Compiler(std::move(graph), kernels, options).compile();
}

}  // namespace autosp::executor
