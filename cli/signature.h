// What ties the graphs of a sharded model to their folder: properties of each graph that name its
// rank and the plan.
#pragma once

#include <optional>
#include <string>

#include "ir/graph.h"
#include "onnx/manifest.h"

namespace autosp::cli {

inline constexpr const char* kAllRanks = "all";

// What a graph says of itself.
struct Signature {
  std::string rank;   // a number, or kAllRanks; empty where the graph does not say
  std::string ranks;  // how many there are
  std::string plan;   // plan_signature of its manifest
};

// Of model and plan: the graphs of one folder carry the same.
std::string plan_signature(const onnx_io::Manifest& manifest);

// `rank`: as in Signature; empty for the whole graph, which is no rank's.
void sign(ir::Graph& graph, const onnx_io::Manifest& manifest, const std::string& rank);

// Nothing for a graph that is not sharded.
std::optional<Signature> signature_of(const ir::Graph& graph);

}  // namespace autosp::cli
