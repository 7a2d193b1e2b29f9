// The attention layers of rank graphs, and the collectives around them.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "ir/graph.h"
#include "onnx/manifest.h"
#include "report/data.h"

namespace autosp::cli {

// Which attention a collective serves.
struct LayerPlace {
  int64_t layer = 0;   // from 1, in forward order; 0: none
  bool after = false;  // it moves what the attention (or its gradient) has made, not what it reads
};

// One entry per collective of the manifest. A collective belongs to the attention that is nearest
// in the graph, forward or backward, with no other collective between them.
std::vector<LayerPlace> place_collectives(const ir::Graph& rank_graph,
                                          const onnx_io::Manifest& manifest);

// Collectives summed by what `key` keeps of them, in the manifest's order of first occurrence.
// `seconds` is by node.
std::vector<ReportCollectives> sum_collectives(const onnx_io::Manifest& manifest,
                                               const std::vector<LayerPlace>& places,
                                               const std::map<std::string, double>& seconds);

ReportLayers describe_layers(const std::vector<std::shared_ptr<const ir::Graph>>& rank_graphs,
                             const onnx_io::Manifest& manifest,
                             const std::vector<LayerPlace>& places);

}  // namespace autosp::cli
