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
                                                      {"Cast", {Op::kCast, 1}},
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

bool is_computed_in_float(ir::DataType type) {
  return type == ir::DataType::kFloat32 || type == ir::DataType::kFloat16 ||
         type == ir::DataType::kBFloat16;
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
    const ir::DataType type = graph.type(node.inputs[k]).dtype;
    if (condition ? type != ir::DataType::kBool : !is_computed_in_float(type)) return false;
  }
  return node.outputs.size() == 1 && is_computed_in_float(graph.type(node.outputs[0]).dtype);
}

const std::vector<std::string>& ops_of(const ir::Node& node) {
  const auto ops = std::ranges::find(node.attributes, "ops", [](const auto& a) { return a.first; });
  AUTOSP_CHECK(ops != node.attributes.end(), "a chain without steps");
  return std::get<std::vector<std::string>>(ops->second);
}

}  // namespace

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

std::vector<Link> links_of(const ir::Node& node) {
  std::vector<Link> links;
  const auto arity = node.attributes.get_ints("arity");
  const auto arguments = node.attributes.get_ints("arguments");
  const auto types = node.attributes.get_ints("types");
  const auto results = node.attributes.get_ints("results");
  auto next = arguments.begin();
  for (const std::string& op : ops_of(node)) {
    const size_t k = links.size();
    Link link{table().at(op).op, {}, static_cast<ir::DataType>(types[k])};
    for (int64_t a = 0; a < arity[k]; ++a) link.arguments.push_back(static_cast<size_t>(*next++));
    links.push_back(std::move(link));
  }
  for (size_t k = 0; k < results.size(); ++k) {
    links[static_cast<size_t>(results[k])].result = static_cast<int>(k);
  }
  for (int64_t k : node.attributes.get_ints("rows")) links[static_cast<size_t>(k)].is_row = true;
  return links;
}

Layout layout_of(const ir::Shape& operand, const ir::Shape& shape) {
  Layout layout;
  const size_t lead = shape.size() - operand.size();
  const bool has_columns = !operand.empty() && operand.back() != 1;
  layout.step = has_columns ? 1 : 0;
  bool whole = true;  // all leading dimensions
  bool single = true;
  int64_t stride = has_columns ? operand.back() : 1;
  layout.strides.assign(shape.size() - 1, 0);
  for (size_t d = shape.size() - 1; d-- > 0;) {
    const int64_t extent = d < lead ? 1 : operand[d - lead];
    whole = whole && extent == shape[d];
    single = single && extent == 1;
    if (extent != 1) layout.strides[d] = stride;
    stride *= extent;
  }
  layout.row = single ? 0 : has_columns ? operand.back() : 1;
  layout.regular = whole || single;
  return layout;
}

bool is_flat(const std::vector<Link>& links, const std::vector<Layout>& layouts,
             const ir::Shape& shape) {
  const bool by_rows = std::ranges::any_of(
      links, [](const Link& link) { return link.is_row || needs_rows(link.op); });
  const int64_t columns = shape.back();
  const bool one_row = ir::num_elements(shape) == columns;
  return !by_rows && std::ranges::all_of(layouts, [&](const Layout& layout) {
    const bool number = layout.step == 0 && layout.row == 0 && layout.regular;
    const bool full = layout.step == 1 && layout.regular && (layout.row == columns || one_row);
    return number || full;
  });
}

}  // namespace autosp::executor::chain
