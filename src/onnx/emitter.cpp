#include "onnx/emitter.h"

#include <algorithm>

#include "reference/kernels.h"

namespace autosp::onnx_io {

namespace {

// Reference kernels visit one element at a time; larger results are left to the run.
constexpr int64_t kEvaluatedElements = 1 << 22;

bool is_random(const std::string& op) {
  return op.starts_with("Random") || op == "Dropout" || op == "Multinomial" || op == "Bernoulli";
}

// All present results' types, or an Error that says which one is missing.
std::vector<ir::Type> complete_types(const ir::Graph& graph, const Operation& operation) {
  const auto inferred = infer(graph, operation);
  std::vector<ir::Type> types(operation.results.size());
  for (size_t k = 0; k < types.size(); ++k) {
    if (!operation.has_result(k)) continue;
    if (k < inferred.size() && inferred[k]) {
      types[k] = *inferred[k];
    } else if (k < operation.declared.size() && operation.declared[k]) {
      types[k] = *operation.declared[k];
    } else {
      Error error("the shape of '{}', computed by node '{}', is not known before the run",
                  operation.results[k], operation.describe());
      for (ValueId input : operation.inputs) {
        if (!input) continue;
        error.note(fmt::format("operand '{}' is {}{}", graph.name_of(input),
                               ir::to_string(graph.type(input)),
                               graph.is_constant(input) ? ", a constant" : ""));
      }
      throw error.help(
          "sharding needs every shape: bind the symbolic dimensions with --dim NAME=VALUE, and "
          "export the model with shape information (value_info) where shapes depend on data");
    }
  }
  return types;
}

}  // namespace

std::vector<ValueId> Emitter::emit(const Operation& operation) {
  std::vector<ir::Type> types = complete_types(*graph_, operation);
  std::vector<ValueId> values(types.size());
  if (auto known = evaluate(operation, types)) {
    for (size_t k = 0; k < values.size(); ++k) {
      if (operation.has_result(k)) {
        values[k] = constant(std::move((*known)[k]), operation.results[k]);
      }
    }
    return values;
  }
  const NodeId node =
      graph_->add_node(operation.op, operation.inputs, std::move(types), operation.attributes,
                       operation.domain, operation.results, operation.name);
  if (!operation.origin.empty()) graph_->set_origin(node, operation.origin);
  if (!operation.phase.empty()) graph_->set_phase(node, operation.phase);
  return graph_->node(node).outputs;
}

ValueId Emitter::emit(const Operation& original, const std::string& op, std::vector<ValueId> inputs,
                      ir::Attributes attributes, const std::string& name) {
  return emit({.name = original.results.front() == name ? original.name : name,
               .domain = "",
               .op = op,
               .inputs = std::move(inputs),
               .attributes = std::move(attributes),
               .results = {name},
               .phase = original.phase})[0];
}

ValueId Emitter::int64s(std::vector<int64_t> values) {
  const auto [entry, fresh] = int64s_.try_emplace(values);
  if (fresh) entry->second = constant(ir::Tensor::int64s(std::move(values)));
  return entry->second;
}

void Emitter::reuse(ValueId constant) {
  constexpr size_t kAxes = 16;  // longer lists are data
  const ir::Type& type = graph_->type(constant);
  if (type.dtype != ir::DataType::kInt64 || type.rank() != 1) return;
  if (type.num_elements() <= static_cast<int64_t>(kAxes)) {
    int64s_.try_emplace(graph_->constant(constant).as_int64s(), constant);
  }
}

bool Emitter::worth_evaluating(const Operation& operation,
                               const std::vector<ir::Type>& types) const {
  if (operation.inputs.empty() || is_random(operation.op)) return false;
  int64_t largest = 0;
  for (ValueId input : operation.inputs) {
    if (!input) continue;
    if (!graph_->is_constant(input) || parameters_.contains(input)) return false;
    largest = std::max(largest, graph_->type(input).num_elements());
  }
  if (operation.phase == kLengthPhase) return true;
  return std::ranges::all_of(types, [&](const ir::Type& type) {
    const int64_t size = type.num_elements();
    return size <= kEvaluatedElements && (type.rank() <= 1 || size <= largest);
  });
}

std::optional<std::vector<ir::Tensor>> Emitter::evaluate(const Operation& operation,
                                                         const std::vector<ir::Type>& types) const {
  if (!worth_evaluating(operation, types)) return std::nullopt;
  if (reference::find_kernel(operation.domain, operation.op) == nullptr) return std::nullopt;
  ir::Graph scratch;
  scratch.opset = graph_->opset;
  std::vector<ir::Tensor> operands;
  std::vector<ValueId> inputs;
  for (ValueId input : operation.inputs) {
    operands.push_back(input ? graph_->constant(input) : ir::Tensor());
    inputs.push_back(input ? scratch.add_constant(graph_->constant(input)) : ValueId());
  }
  const NodeId node = scratch.add_node(operation.op, std::move(inputs), types, operation.attributes,
                                       operation.domain, operation.results, operation.name);
  return reference::evaluate(scratch, scratch.node(node), operands);
}

}  // namespace autosp::onnx_io
