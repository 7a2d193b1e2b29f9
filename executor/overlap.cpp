#include "executor/overlap.h"

#include <algorithm>

#include "ir/operator_traits.h"
#include "ir/rewriter.h"

namespace autosp::executor {

using ir::Graph;
using ir::Node;

namespace {

// How many nodes before a collective may be put behind it. More would hide more of it, and keep
// what these nodes read for longer.
constexpr size_t kWindow = 24;

// By value: the first node other than a view or a collective that reads its bytes; the number of
// nodes where there is none.
std::vector<int> first_readers(const Graph& graph) {
  const auto& nodes = graph.nodes();
  std::vector<int> first(graph.values().size(), static_cast<int>(nodes.size()));
  for (size_t step = nodes.size(); step-- > 0;) {
    const Node& node = nodes[step];
    if (ir::is_collective(node)) continue;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (!node.inputs[k]) continue;
      int& reader = first[node.inputs[k].index()];
      const bool view = k == 0 && ir::is_view(node);
      reader = std::min(reader, view ? first[node.outputs[0].index()] : static_cast<int>(step));
    }
  }
  return first;
}

// Places nodes one after the other.
class Order {
 public:
  explicit Order(const Graph& graph) : graph_(graph), producer_(graph.values().size(), -1) {
    for (size_t step = 0; step < graph.nodes().size(); ++step) {
      for (ValueId result : graph.nodes()[step].outputs) {
        if (result) producer_[result.index()] = static_cast<int>(step);
      }
    }
  }

  std::vector<size_t> run() {
    const auto& nodes = graph_.nodes();
    const std::vector<int> first_reader = first_readers(graph_);
    size_t fetched_at = 0;  // where the last fetched value is read first
    size_t last = 0;        // behind the last collective
    for (size_t step = 0; step < nodes.size(); ++step) {
      if (!ir::is_collective(nodes[step])) {
        order_.push_back(step);
        continue;
      }
      if (hands_on(nodes[step])) {
        order_.push_back(step);
        last = order_.size();
      } else if (fetches(nodes[step])) {
        const auto at = std::min(order_.size(), std::max(last, fetched_at));
        order_.insert(order_.begin() + static_cast<std::ptrdiff_t>(at), step);
        last = at + 1;
        fetched_at = static_cast<size_t>(first_reader[nodes[step].outputs[0].index()]) + 1;
      } else {
        last = place_behind_needed(step, last);
      }
    }
    return order_;
  }

 private:
  // Whether it sends on what a collective has received. How many of such values there are at a time
  // is decided by its place, and it needs nothing that is not there already.
  bool hands_on(const Node& node) const {
    const int producer = node.inputs[0] ? producer_[node.inputs[0].index()] : -1;
    return producer >= 0 && ir::is_collective(graph_.nodes()[static_cast<size_t>(producer)]);
  }

  // Whether it needs none but inputs of the graph, and tokens.
  bool fetches(const Node& node) const {
    return std::ranges::all_of(node.inputs, [&](ValueId input) {
      if (!input) return true;
      const int producer = producer_[input.index()];
      return producer < 0 || ir::is_collective(graph_.nodes()[static_cast<size_t>(producer)]);
    });
  }

  // Puts those of the last nodes that the collective does not need behind it; where the next one
  // may begin.
  size_t place_behind_needed(size_t collective, size_t earliest) {
    const size_t begin = std::max(earliest, order_.size() - std::min(order_.size(), kWindow));
    std::vector<bool> needed(graph_.nodes().size(), false);
    const auto need_operands = [&](size_t step) {
      for (ValueId input : graph_.nodes()[step].inputs) {
        if (input && producer_[input.index()] >= 0) {
          needed[static_cast<size_t>(producer_[input.index()])] = true;
        }
      }
    };
    need_operands(collective);
    for (size_t k = order_.size(); k-- > begin;) {
      if (needed[order_[k]]) need_operands(order_[k]);
    }
    const auto behind =
        std::stable_partition(order_.begin() + static_cast<std::ptrdiff_t>(begin), order_.end(),
                              [&](size_t step) { return needed[step]; });
    const auto next = order_.insert(behind, collective) + 1;
    return static_cast<size_t>(next - order_.begin());
  }

  const Graph& graph_;
  std::vector<int> producer_;  // by value: a node, or -1
  std::vector<size_t> order_;
};

}  // namespace

Graph start_collectives_early(const Graph& graph) {
  ir::Rewriter rewriter(graph);
  for (size_t step : Order(graph).run()) rewriter.copy(graph.nodes()[step]);
  return std::move(rewriter).finish();
}

CollectiveDeadlines collective_deadlines(const Graph& graph) {
  const auto& nodes = graph.nodes();
  const int end = static_cast<int>(nodes.size());
  const std::vector<int> first_reader = first_readers(graph);
  CollectiveDeadlines result{std::vector<int>(nodes.size(), 0), std::vector<int>(nodes.size(), 0)};
  // Who waits for a later one has waited for all before it.
  int waits = end;
  for (size_t step = nodes.size(); step-- > 0;) {
    if (!ir::is_collective(nodes[step])) continue;
    for (ValueId output : nodes[step].outputs) {
      if (output) waits = std::min(waits, first_reader[output.index()]);
    }
    result.waited_for_by[step] = waits;
  }
  int count = 0;
  for (size_t step = 0; step < nodes.size(); ++step) {
    if (!ir::is_collective(nodes[step])) continue;
    ++count;
    if (const int reader = result.waited_for_by[step]; reader < end) {
      result.ended_before[static_cast<size_t>(reader)] = count;
    }
  }
  return result;
}

}  // namespace autosp::executor
