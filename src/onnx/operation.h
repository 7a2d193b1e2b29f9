// A node on its way into a graph. Private to this folder.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ir/graph.h"

namespace autosp::onnx_io {

// The phase of a node that computes with the length of the sequence alone (transforms/open_length):
// once the length is known, so is what it makes, and no node remains.
inline constexpr const char* kLengthPhase = "length";

struct Operation {
  std::string name;  // of the node; may be empty
  std::string domain;
  std::string op;
  int64_t version = ir::kOpset;  // of its domain, as the model imports it
  std::vector<ValueId> inputs;
  ir::Attributes attributes;
  std::vector<std::string> results;  // names; "" is an absent result
  std::string origin{};
  std::string phase{};
  std::vector<std::optional<ir::Type>> declared{};  // result types the model states, where it does

  bool is(std::string_view standard_op) const { return domain.empty() && op == standard_op; }
  ValueId input(size_t k) const { return k < inputs.size() ? inputs[k] : ValueId(); }
  bool has_result(size_t k) const { return k < results.size() && !results[k].empty(); }
  // "layer0/scores: Softmax", for messages.
  std::string describe() const;
};

// The types of the results, each where it can be told. Throws Error for an operator nobody knows
// and for operands it does not accept.
std::vector<std::optional<ir::Type>> infer(const ir::Graph& graph, const Operation& operation);

// Throws Error unless the attributes are those of the operator, at its version, and of their types.
// Passes what libonnx has no schema for.
void check_attributes(const Operation& operation);

// Result types of operators that libonnx has no schema for (ONNX Runtime's training operators);
// nullopt for others.
std::optional<std::vector<std::optional<ir::Type>>> infer_training_operator(
    const ir::Graph& graph, const Operation& operation);

// Makes the `autosp` domain known to libonnx in this process. Idempotent.
void register_schemas();

}  // namespace autosp::onnx_io
