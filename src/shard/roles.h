// What a training graph's inputs and outputs are: data, parameters, loss, gradients; and which
// dimensions of the data are the sequence and the batch.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ir/graph.h"

namespace autosp::shard {

// One dimension of one value.
struct DimTag {
  ValueId value;
  int dim = 0;
  auto operator<=>(const DimTag&) const = default;
};

struct Gradient {
  size_t output = 0;      // position among the graph's outputs
  std::string parameter;  // name of the parameter it belongs to
};

struct Roles {
  std::optional<size_t> loss;  // position among the graph's outputs
  std::vector<Gradient> gradients;
  std::vector<bool> is_parameter;  // by value
  std::vector<DimTag> sequence;
  std::vector<DimTag> batch;
  std::vector<std::string> reasons;  // one line per decision, for people
};

// A dimension the model names: axis `axis` of input `input` is called `name`.
struct NamedDim {
  std::string name;
  std::string input;
  int axis = 0;
};

// What the user says; everything not said is detected.
struct RoleOptions {
  std::vector<std::string> sequence;             // "input_ids:1"; any value of the graph
  std::vector<std::string> batch;                // likewise
  std::optional<std::string> loss;               // output name
  std::map<std::string, std::string> gradients;  // parameter name -> output name
  std::vector<NamedDim> named_dims;              // the model's symbolic dimensions
};

// Detects roles from, in this order: what the user says, the names of symbolic dimensions, the
// names of inputs and outputs that exporters use, and element types. The sequence may stay unknown:
// the planner then looks for what the graph's softmaxes normalise.
//
// Throws Error when an option names something that does not exist or cannot be that (a loss that is
// no floating-point scalar, a gradient of another shape than its parameter, a sequence dimension of
// a parameter), or when the graph has no gradient outputs (it is no training graph).
Roles detect_roles(const ir::Graph& graph, const RoleOptions& options = {});

}  // namespace autosp::shard
