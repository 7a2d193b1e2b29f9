#include "report/layers.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "ir/operator_traits.h"

namespace autosp::cli {

namespace {

using ir::Graph;
using ir::Node;
using onnx_io::Manifest;
using onnx_io::ManifestCollective;

bool is_attention(const Node& node) {
  return node.domain == ir::kAutospDomain && (node.op == "Attention" || node.op == "AttentionGrad");
}

bool is_forward(const Node& node) {
  return is_attention(node) && node.op == "Attention" && node.phase != "recompute";
}

constexpr std::string_view kCopy = "~recompute";  // ends the names of nodes that are run again
constexpr std::string_view kBlock = "@block";  // and these of attention to blocks of keys on a ring

// The name without "@block" and a number at its end.
std::string without_block(std::string name) {
  const size_t block = name.rfind(kBlock);
  if (block == std::string::npos) return name;
  const std::string_view number = std::string_view(name).substr(block + kBlock.size());
  const bool is_number =
      !number.empty() && std::ranges::all_of(number, [](char c) { return c >= '0' && c <= '9'; });
  if (is_number) name.resize(block);
  return name;
}

// The name that all nodes of one attention share.
std::string attention_of(std::string name) {
  name = without_block(std::move(name));
  if (name.ends_with(kCopy)) name.resize(name.size() - kCopy.size());
  return name;
}

// The attentions of a rank graph, and the way to them.
class LayerFinder {
 public:
  explicit LayerFinder(const Graph& graph) : graph_(graph), readers_(ir::consumers(graph)) {
    for (size_t k = 0; k < graph.nodes().size(); ++k) {
      by_name_.emplace(graph.nodes()[k].name, NodeId(k));
    }
    for (const Node& node : graph.nodes()) {
      if (!is_forward(node)) continue;
      layers_.emplace(attention_of(node.name), static_cast<int64_t>(layers_.size()) + 1);
    }
  }

  LayerPlace place(const std::string& name) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) return {};
    const auto ahead = nearest_attention(found->second, &LayerFinder::readers);
    const auto behind = nearest_attention(found->second, &LayerFinder::producers);
    const bool after = behind && (!ahead || behind->distance < ahead->distance);
    if (!ahead && !behind) return {};
    return {.layer = layer_of(after ? behind->node : ahead->node), .after = after};
  }

 private:
  struct Found {
    NodeId node;
    int distance = 0;
  };
  using Neighbours = std::vector<NodeId> (LayerFinder::*)(NodeId) const;

  std::vector<NodeId> readers(NodeId id) const {
    std::vector<NodeId> result;
    for (ValueId output : graph_.node(id).outputs) {
      if (!output) continue;
      const auto& of_output = readers_[output.index()];
      result.insert(result.end(), of_output.begin(), of_output.end());
    }
    return result;
  }

  std::vector<NodeId> producers(NodeId id) const {
    std::vector<NodeId> result;
    for (ValueId input : graph_.node(id).inputs) {
      if (input && graph_.value(input).kind == ir::ValueKind::kResult) {
        result.push_back(graph_.value(input).producer);
      }
    }
    return result;
  }

  // Breadth first; other collectives are not passed.
  std::optional<Found> nearest_attention(NodeId from, Neighbours neighbours) const {
    std::vector<bool> seen(graph_.nodes().size(), false);
    std::deque<Found> open = {{from, 0}};
    while (!open.empty()) {
      const Found at = open.front();
      open.pop_front();
      for (NodeId next : (this->*neighbours)(at.node)) {
        if (seen[next.index()]) continue;
        seen[next.index()] = true;
        const Node& node = graph_.node(next);
        if (is_attention(node)) return Found{next, at.distance + 1};
        if (!ir::is_collective(node)) open.push_back({next, at.distance + 1});
      }
    }
    return std::nullopt;
  }

  int64_t layer_of(NodeId id) const {
    const Node& node = graph_.node(id);
    if (node.op == "AttentionGrad") {
      // It reads the row maxima of the attention whose gradient it is, or the largest of blocks.
      const Node* forward = graph_.producer(node.input(5));
      if (forward == nullptr) return 0;
      if (is_attention(*forward)) return layer_named(forward->name);
      const NodeId maxima = graph_.value(node.input(5)).producer;
      const auto block = nearest_attention(maxima, &LayerFinder::producers);
      return block ? layer_named(graph_.node(block->node).name) : 0;
    }
    return layer_named(node.name);
  }

  int64_t layer_named(const std::string& name) const {
    const auto found = layers_.find(attention_of(name));
    return found == layers_.end() ? 0 : found->second;
  }

  const Graph& graph_;
  std::vector<std::vector<NodeId>> readers_;
  std::unordered_map<std::string, NodeId> by_name_;
  std::unordered_map<std::string, int64_t> layers_;  // by name of the attention
};

ReportCollectives row_of(const ManifestCollective& collective, int64_t layer) {
  return {.layer = layer,
          .phase = std::string(name_of(collective.phase)),
          .purpose = std::string(name_of(collective.purpose)),
          .kind = collective.kind};
}

// Adds a collective to the row of its like.
void add(const ManifestCollective& collective, int64_t layer, double seconds,
         std::vector<ReportCollectives>& rows) {
  const ReportCollectives like = row_of(collective, layer);
  const auto key = [](const ReportCollectives& row) {
    return std::tie(row.layer, row.phase, row.purpose, row.kind);
  };
  auto row = std::ranges::find_if(rows, [&](const auto& other) { return key(other) == key(like); });
  if (row == rows.end()) row = rows.insert(rows.end(), like);
  ++row->count;
  row->bytes += collective.bytes_per_rank;
  row->seconds += seconds;
}

// The collectives on one side of a layer's attention: of queries, keys, values and their gradients,
// or of the output and its gradient. What goes in forward comes out backward.
std::vector<ReportCollectives> around(const Manifest& manifest,
                                      const std::vector<LayerPlace>& places, int64_t layer,
                                      bool of_output) {
  std::vector<ReportCollectives> rows;
  for (size_t k = 0; k < places.size(); ++k) {
    const bool backward = manifest.collectives[k].phase == onnx_io::Phase::kBackward;
    if (places[k].layer != layer || (places[k].after != backward) != of_output) continue;
    add(manifest.collectives[k], layer, 0, rows);
  }
  return rows;
}

bool same_traffic(const std::vector<ReportCollectives>& a,
                  const std::vector<ReportCollectives>& b) {
  return std::ranges::equal(a, b, [](const auto& x, const auto& y) {
    return std::tie(x.phase, x.kind, x.count, x.bytes) ==
           std::tie(y.phase, y.kind, y.count, y.bytes);
  });
}

const Node* first_attention(const Graph& graph) {
  const auto found = std::ranges::find_if(
      graph.nodes(), [](const Node& node) { return is_attention(node) && node.op == "Attention"; });
  return found == graph.nodes().end() ? nullptr : &*found;
}

// Positions of the sequence that a rank has outside attention: the extent along the last axis in
// which its slice of a data input differs from the whole, `positions` long.
int64_t tokens_of(const Manifest& manifest, size_t rank, int64_t positions) {
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    if (input.role != onnx_io::InputRole::kData || input.slices.empty()) continue;
    const ir::Shape& extent = input.slices[rank].extent;
    for (size_t axis = extent.size(); axis-- > 0;) {
      if (input.type.shape[axis] == positions && extent[axis] != positions) return extent[axis];
    }
  }
  return positions;
}

// That a rank attends to, be it block by block.
int64_t keys_of(const Graph& graph, const Node& attention) {
  int64_t keys = 0;
  for (const Node& node : graph.nodes()) {
    if (!is_forward(node) || attention_of(node.name) != attention_of(attention.name)) continue;
    keys += graph.shape(node.input(1))[2];
  }
  return keys;
}

ReportAttentionRank describe_rank(const Graph& graph, const Node& attention,
                                  const Manifest& manifest, size_t k) {
  const ir::Shape& query = graph.shape(attention.input(0));
  const ir::Shape& key = graph.shape(attention.input(1));
  ReportAttentionRank rank{.rank = static_cast<int64_t>(k),
                           .heads = query[1],
                           .kv_heads = key[1],
                           .queries = query[2],
                           .keys = keys_of(graph, attention)};
  for (size_t axis = 0; axis < manifest.mesh.size(); ++axis) {
    const onnx_io::ManifestAxis& mesh = manifest.mesh[axis];
    const int64_t at = manifest.ranks[k].coordinates[axis];
    if (mesh.name == "dp") {
      rank.replica = at;
    } else if (mesh.name == "r") {
      rank.column = at;
    } else {
      rank.row = rank.row * mesh.size + at;
    }
  }
  return rank;
}

}  // namespace

std::vector<LayerPlace> place_collectives(const Graph& rank_graph, const Manifest& manifest) {
  const LayerFinder finder(rank_graph);
  std::vector<LayerPlace> places;
  for (const ManifestCollective& collective : manifest.collectives) {
    const bool reshards = collective.purpose == onnx_io::Purpose::kReshard;
    places.push_back(reshards ? finder.place(collective.node) : LayerPlace());
  }
  return places;
}

std::vector<ReportCollectives> sum_collectives(const Manifest& manifest,
                                               const std::vector<LayerPlace>& places,
                                               const std::map<std::string, double>& seconds) {
  std::vector<ReportCollectives> rows;
  for (size_t k = 0; k < places.size(); ++k) {
    const ManifestCollective& collective = manifest.collectives[k];
    const auto found = seconds.find(collective.node);
    add(collective, places[k].layer, found == seconds.end() ? 0 : found->second, rows);
  }
  return rows;
}

ReportLayers describe_layers(const std::vector<std::shared_ptr<const Graph>>& rank_graphs,
                             const Manifest& manifest, const std::vector<LayerPlace>& places) {
  ReportLayers layers;
  for (const Node& node : rank_graphs.front()->nodes()) {
    layers.count += is_forward(node) && without_block(node.name) == node.name ? 1 : 0;
  }
  if (layers.count == 0) return layers;
  for (size_t k = 0; k < rank_graphs.size(); ++k) {
    const Node* attention = first_attention(*rank_graphs[k]);
    if (attention == nullptr) return {};
    layers.ranks.push_back(describe_rank(*rank_graphs[k], *attention, manifest, k));
    const ReportAttentionRank& rank = layers.ranks.back();
    const int64_t batch = rank_graphs[k]->shape(attention->input(0))[0];
    if (rank.row == 0 && rank.column == 0) layers.batch += batch;
    if (rank.replica != 0) continue;
    if (rank.column == 0) layers.heads += rank.heads;
    if (rank.row == 0) layers.positions += rank.queries;
  }
  for (size_t k = 0; k < layers.ranks.size(); ++k) {
    layers.ranks[k].tokens = tokens_of(manifest, k, layers.positions);
  }
  layers.before = around(manifest, places, 1, false);
  layers.after = around(manifest, places, 1, true);
  for (int64_t layer = 2; layer <= layers.count; ++layer) {
    layers.alike = layers.alike &&
                   same_traffic(layers.before, around(manifest, places, layer, false)) &&
                   same_traffic(layers.after, around(manifest, places, layer, true));
  }
  return layers;
}

}  // namespace autosp::cli
