// Appends operations to a graph: infers their types and evaluates what is known. Private.
#pragma once

#include <map>
#include <unordered_set>

#include "onnx/operation.h"

namespace autosp::onnx_io {

// Shape arithmetic is evaluated on the fly, because the shapes of later results depend on it.
// Evaluated is a node whose operands are all known, and whose result is no larger than its largest
// operand or has rank 0 or 1: so a mask with two sequence dimensions is never born here.
class Emitter {
 public:
  explicit Emitter(ir::Graph& graph) : graph_(&graph) {}

  ir::Graph& graph() { return *graph_; }
  const ir::Shape& shape(ValueId x) const { return graph_->shape(x); }
  ir::DataType dtype(ValueId x) const { return graph_->type(x).dtype; }
  size_t rank(ValueId x) const { return shape(x).size(); }

  // Parameters are operands of nodes, never of evaluation: their identity must survive.
  void mark_parameter(ValueId id) { parameters_.insert(id); }

  // Adds an operation that is in normal form; one value per result, invalid where it is absent.
  // Throws Error when a result's type cannot be told.
  std::vector<ValueId> emit(const Operation& operation);

  // A standard operator with one result, called `name`, that replaces `original` or a part of it.
  ValueId emit(const Operation& original, const std::string& op, std::vector<ValueId> inputs,
               ir::Attributes attributes, const std::string& name);

  ValueId constant(ir::Tensor tensor, std::string_view name = "") {
    return graph_->add_constant(std::move(tensor), name);
  }
  // A list of integers: the model's own constant where it has an equal one.
  ValueId int64s(std::vector<int64_t> values);
  void reuse(ValueId constant);

 private:
  std::optional<std::vector<ir::Tensor>> evaluate(const Operation& operation,
                                                  const std::vector<ir::Type>& types) const;
  bool worth_evaluating(const Operation& operation, const std::vector<ir::Type>& types) const;

  ir::Graph* graph_;
  std::unordered_set<ValueId> parameters_;
  std::map<std::vector<int64_t>, ValueId> int64s_;
};

// Brings an operation to normal form (see ir/graph.h) and emits it.
std::vector<ValueId> emit_normal_form(Emitter& emitter, Operation operation);

}  // namespace autosp::onnx_io
