#include "onnx/node_order.h"

#include <algorithm>
#include <queue>
#include <unordered_map>

namespace autosp::onnx_io {

namespace {

void visit_names(const onnx::NodeProto& node, const std::function<void(const std::string&)>& visit);

void visit_names(const onnx::GraphProto& graph,
                 const std::function<void(const std::string&)>& visit) {
  for (const auto& node : graph.node()) visit_names(node, visit);
  for (const auto& output : graph.output()) visit(output.name());
}

// Every name that a node reads, those in its subgraphs included.
void visit_names(const onnx::NodeProto& node,
                 const std::function<void(const std::string&)>& visit) {
  for (const std::string& input : node.input()) {
    if (!input.empty()) visit(input);
  }
  for (const auto& attribute : node.attribute()) {
    if (attribute.has_g()) visit_names(attribute.g(), visit);
    for (const auto& graph : attribute.graphs()) visit_names(graph, visit);
  }
}

std::unordered_map<std::string, int> producers_of(const NodeList& nodes) {
  std::unordered_map<std::string, int> producers;
  for (int n = 0; n < nodes.size(); ++n) {
    for (const std::string& output : nodes[n].output()) {
      if (output.empty()) continue;
      const auto [entry, fresh] = producers.emplace(output, n);
      if (!fresh) {
        throw Error("'{}' is computed twice: by node '{}' and by node '{}'", output,
                    describe(nodes[entry->second]), describe(nodes[n]))
            .help("ONNX gives every value one producer: export the model again");
      }
    }
  }
  return producers;
}

// Every node that was not ordered waits for another such node; following them closes a cycle.
[[noreturn]] void throw_cycle(const NodeList& nodes, const std::vector<std::vector<int>>& reads,
                              const std::vector<bool>& ordered) {
  int at = static_cast<int>(std::ranges::find(ordered, false) - ordered.begin());
  std::vector<int> path;
  while (std::ranges::find(path, at) == path.end()) {
    path.push_back(at);
    at = *std::ranges::find_if(reads[static_cast<size_t>(at)], [&](int producer) {
      return !ordered[static_cast<size_t>(producer)];
    });
  }
  std::string text = fmt::format("'{}'", describe(nodes[at]));
  for (size_t k = path.size(); k-- > 0;) {
    text += fmt::format(" -> '{}'", describe(nodes[path[k]]));
    if (path[k] == at) break;
  }
  throw Error("the graph has a cycle: {}", text)
      .help("a training graph computes each value once, from values before it: export it again");
}

}  // namespace

std::string describe(const onnx::NodeProto& node) {
  const std::string& name =
      node.name().empty() && node.output_size() > 0 ? node.output(0) : node.name();
  return fmt::format("{}: {}{}{}", name, node.domain(),
                     node.domain().empty() ? "" : "::", node.op_type());
}

std::vector<int> node_order(const NodeList& nodes,
                            const std::function<bool(const std::string&)>& is_known) {
  const auto producers = producers_of(nodes);
  const auto count = static_cast<size_t>(nodes.size());
  std::vector<std::vector<int>> reads(count);
  std::vector<std::vector<int>> readers(count);
  for (int n = 0; n < nodes.size(); ++n) {
    visit_names(nodes[n], [&](const std::string& name) {
      const auto producer = producers.find(name);
      if (producer == producers.end()) return;
      reads[static_cast<size_t>(n)].push_back(producer->second);
      readers[static_cast<size_t>(producer->second)].push_back(n);
    });
    for (const std::string& input : nodes[n].input()) {
      if (input.empty() || producers.contains(input) || is_known(input)) continue;
      throw Error("node '{}' reads '{}', which nothing defines", describe(nodes[n]), input)
          .help("the model is incomplete: export it again");
    }
  }
  std::vector<size_t> waiting(count);
  std::priority_queue<int, std::vector<int>, std::greater<>> ready;
  for (size_t n = 0; n < count; ++n) {
    waiting[n] = reads[n].size();
    if (waiting[n] == 0) ready.push(static_cast<int>(n));
  }
  std::vector<int> order;
  std::vector<bool> ordered(count, false);
  while (!ready.empty()) {
    const int n = ready.top();
    ready.pop();
    order.push_back(n);
    ordered[static_cast<size_t>(n)] = true;
    for (int reader : readers[static_cast<size_t>(n)]) {
      if (--waiting[static_cast<size_t>(reader)] == 0) ready.push(reader);
    }
  }
  if (order.size() != count) throw_cycle(nodes, reads, ordered);
  return order;
}

}  // namespace autosp::onnx_io
