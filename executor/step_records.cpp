#include "executor/step_records.h"

#include <algorithm>

#include "base/context.h"

namespace autosp::executor {

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void check_feeds(const ir::Graph& graph, const Arrays& feeds, const std::set<std::string>& kept) {
  for (ValueId id : graph.inputs()) {
    const std::string& name = graph.name_of(id);
    if (kept.contains(name)) continue;
    const auto feed = feeds.find(name);
    if (feed == feeds.end()) {
      std::vector<std::string> names;
      for (const auto& [other, tensor] : feeds) names.push_back(other);
      const std::string near = nearest_name(name, names);
      throw Error("input \"{}\" ({}) is not fed", name, ir::to_string(graph.type(id)))
          .note(fmt::format("the feeds have {} arrays", feeds.size()))
          .help(near.empty() ? fmt::format("add an array named \"{}\" to the feeds", name)
                             : fmt::format("the feeds have \"{}\": is it that?", near));
    }
    if (feed->second.type() != graph.type(id)) {
      throw Error("input \"{}\" is {}, but is fed {}", name, ir::to_string(graph.type(id)),
                  ir::to_string(feed->second.type()))
          .note("shape and element type must be the input's")
          .help("convert the array, or bind the model's dimensions to the array's shape");
    }
  }
}

int64_t bytes_sent(const ir::Graph& graph, const ir::Node& node, int rank) {
  const std::vector<int64_t> group = node.attributes.get_ints("group");
  const auto members = static_cast<int64_t>(group.size());
  const auto me = std::ranges::find(group, rank) - group.begin();
  const ir::Type& x = graph.type(node.inputs[0]);
  const int64_t bytes = x.num_bytes();
  if (node.op == "AllReduce") return 2 * bytes * (members - 1) / members;
  if (node.op == "AllGather") return bytes * (members - 1);
  if (node.op == "ReduceScatter") return bytes - graph.type(node.outputs[0]).num_bytes();
  if (node.op != "AllToAll") return 0;
  const std::vector<int64_t> extent = node.attributes.get_ints("send_extent");
  const auto axes = static_cast<int64_t>(x.rank());
  int64_t elements = 0;
  for (int64_t i = 0; i < members; ++i) {
    if (i == me) continue;
    int64_t box = 1;
    for (int64_t k = 0; k < axes; ++k) box *= extent[static_cast<size_t>(i * axes + k)];
    elements += box;
  }
  return elements * static_cast<int64_t>(ir::element_size(x.dtype));
}

Error in_step(Error error, const ir::Graph& graph, const ir::Node& node, int rank) {
  error.note(fmt::format("in {} on rank {}", graph.describe(node), rank));
  return complete(error, "",
                  "check the values that are fed: this node cannot work on its operands");
}

}  // namespace autosp::executor
