#include "executor/kernels/chain/chain.h"

#include <algorithm>
#include <map>

namespace autosp::executor::chain {

namespace {

struct Entry {
  Op op;
  size_t arity;
};

const std::map<std::string, Entry>& table() {
  static const std::map<std::string, Entry> kTable = {{"Neg", {Op::kNeg, 1}},
                                                      {"Abs", {Op::kAbs, 1}},
                                                      {"Exp", {Op::kExp, 1}},
                                                      {"Log", {Op::kLog, 1}},
                                                      {"Sqrt", {Op::kSqrt, 1}},
                                                      {"Reciprocal", {Op::kReciprocal, 1}},
                                                      {"Sigmoid", {Op::kSigmoid, 1}},
                                                      {"Tanh", {Op::kTanh, 1}},
                                                      {"Erf", {Op::kErf, 1}},
                                                      {"Relu", {Op::kRelu, 1}},
                                                      {"Sin", {Op::kSin, 1}},
                                                      {"Cos", {Op::kCos, 1}},
                                                      {"Expand", {Op::kExpand, 1}},
                                                      {"Add", {Op::kAdd, 2}},
                                                      {"Sub", {Op::kSub, 2}},
                                                      {"Mul", {Op::kMul, 2}},
                                                      {"Div", {Op::kDiv, 2}},
                                                      {"Max", {Op::kMax, 2}},
                                                      {"Min", {Op::kMin, 2}},
                                                      {"Pow", {Op::kPow, 2}},
                                                      {"Where", {Op::kWhere, 3}},
                                                      {"ReduceSum", {Op::kReduceSum, 1}},
                                                      {"ReduceMax", {Op::kReduceMax, 1}},
                                                      {"Softmax", {Op::kSoftmax, 1}},
                                                      {"LogSoftmax", {Op::kLogSoftmax, 1}}};
  return kTable;
}

bool reduces_last_axis(const ir::Graph& graph, const ir::Node& node) {
  const auto axes = graph.constant_ints(node.input(1));
  const size_t rank = graph.shape(node.inputs[0]).size();
  return axes && axes->size() == 1 && ir::normalize_axis((*axes)[0], rank) + 1 == rank &&
         node.attributes.get_int("keepdims", 1) != 0;
}

bool types_fit(const ir::Graph& graph, const ir::Node& node, const Entry& entry) {
  const bool exact = entry.op != Op::kMax && entry.op != Op::kMin;
  if (node.inputs.size() < entry.arity || (!exact && node.inputs.size() != entry.arity)) {
    return false;
  }
  for (size_t k = 0; k < entry.arity; ++k) {
    if (!node.inputs[k]) return false;
    const bool condition = entry.op == Op::kWhere && k == 0;
    const ir::DataType wanted = condition ? ir::DataType::kBool : ir::DataType::kFloat32;
    if (graph.type(node.inputs[k]).dtype != wanted) return false;
  }
  return node.outputs.size() == 1 && graph.type(node.outputs[0]).dtype == ir::DataType::kFloat32;
}

}  // namespace

std::optional<Op> find_op(const std::string& name) {
  const auto found = table().find(name);
  if (found == table().end()) return std::nullopt;
  return found->second.op;
}

std::optional<Step> step_of(const ir::Graph& graph, const ir::Node& node) {
  if (!node.domain.empty()) return std::nullopt;
  const auto found = table().find(node.op);
  if (found == table().end() || !types_fit(graph, node, found->second)) return std::nullopt;
  const Op op = found->second.op;
  Step step{op, found->second.arity, graph.shape(node.outputs[0]), reduces(op)};
  if (reduces(op)) {
    if (!reduces_last_axis(graph, node)) return std::nullopt;
    step.shape = graph.shape(node.inputs[0]);
  }
  if (needs_rows(op) && !reduces(op)) {
    const size_t rank = step.shape.size();
    const auto axis = ir::normalize_axis(node.attributes.get_int("axis", -1), rank);
    if (axis + 1 != rank) return std::nullopt;
  }
  if (step.shape.empty() || ir::num_elements(step.shape) == 0) return std::nullopt;
  return step;
}

}  // namespace autosp::executor::chain
