// Removes what changes nothing and writes every view in one way.
//
// Squeeze, Unsqueeze and Flatten are reshapes with a known result shape; chains of reshapes, of
// transposes and of expansions are one; slices and pads name every bound as a plain number. Later
// passes and the planner's rules then see each view in one form only. Arithmetic is dropped where
// it is exact: x·1, x/1, x¹, and x + 0, which at most makes a zero positive.
#include <algorithm>
#include <numeric>
#include <unordered_set>

#include "ir/known_values.h"
#include "ir/rewriter.h"
#include "transforms/canonicalize/affine.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/constants.h"

namespace autosp::transforms {

using ir::Builder;
using ir::Graph;
using ir::Node;
using ir::Rewriter;
using ir::Shape;

namespace {

class Simplifier {
 public:
  Simplifier(const Graph& graph, Rewriter& rewriter)
      : graph_(graph),
        rewriter_(rewriter),
        build_(rewriter.build()),
        affine_(graph),
        is_parameter_(find_parameter_constants(graph)) {}

  // The value that stands for the node's first result, or an invalid id when the node stays.
  ValueId simplify(const Node& node);

 private:
  const Graph& old() const { return graph_; }
  ValueId operand(const Node& node, size_t k) const { return rewriter_.mapped(node.input(k)); }
  const ir::Type& result_type(const Node& node) const { return old().type(node.output(0)); }
  const std::string& result_name(const Node& node) const { return old().name_of(node.output(0)); }
  // The producer, in the new graph, of operand k when it is an `op`; else null.
  const Node* produced_by(ValueId value, std::string_view op) const {
    const Node* producer = rewriter_.to().producer(value);
    return producer != nullptr && producer->is(op) ? producer : nullptr;
  }
  bool keeps_type(const Node& node, size_t k) const {
    return old().type(node.input(k)) == result_type(node);
  }

  ValueId reshape(ValueId x, const Shape& shape, const std::string& name);
  ValueId transpose(const Node& node);
  ValueId expand(const Node& node);
  ValueId slice(const Node& node);
  ValueId pad(const Node& node);
  ValueId dropout(const Node& node);
  ValueId where(const Node& node);
  ValueId arithmetic(const Node& node);
  ValueId logic(const Node& node);
  ValueId sum(const Node& node);
  ValueId equality(const Node& node);
  std::optional<double> fill_of(ValueId value) const;
  ValueId reduction(const Node& node);

  const Graph& graph_;
  Rewriter& rewriter_;
  Builder& build_;
  AffineAnalysis affine_;
  std::vector<bool> is_parameter_;  // constants that are trained
};

ValueId Simplifier::simplify(const Node& node) {
  const std::string& op = node.op;
  if (op == "Identity" || (op == "Cast" && keeps_type(node, 0))) return operand(node, 0);
  if (op == "CastLike")
    return build_.cast(operand(node, 0), result_type(node).dtype, result_name(node));
  if (op == "Reshape" || op == "Squeeze" || op == "Unsqueeze" || op == "Flatten") {
    return reshape(operand(node, 0), result_type(node).shape, result_name(node));
  }
  if (op == "Transpose") return transpose(node);
  if (op == "Expand") return expand(node);
  if (op == "Slice") return slice(node);
  if (op == "Pad") return pad(node);
  if (op == "Dropout") return dropout(node);
  if (op == "Where") return where(node);
  if (op == "Mul" || op == "Div" || op == "Pow" || op == "Neg" || op == "Not") {
    return arithmetic(node);
  }
  if (op == "Add") return sum(node);
  if (op == "Equal") return equality(node);
  if (op == "And" || op == "Or") return logic(node);
  if (op.starts_with("Reduce")) return reduction(node);
  const bool one_operand = node.inputs.size() == 1;
  if (one_operand && (op == "Concat" || op == "Sum" || op == "Max" || op == "Min")) {
    return operand(node, 0);
  }
  if (op == "Split" && node.outputs.size() == 1 && node.output(0)) return operand(node, 0);
  return {};
}

ValueId Simplifier::reshape(ValueId x, const Shape& shape, const std::string& name) {
  while (const Node* before = produced_by(x, "Reshape")) x = before->input(0);
  return build_.reshape(x, shape, name);
}

ValueId Simplifier::transpose(const Node& node) {
  const size_t rank = result_type(node).rank();
  std::vector<int64_t> permutation = node.attributes.get_ints("perm");
  if (permutation.empty()) {
    permutation.resize(rank);
    std::iota(permutation.rbegin(), permutation.rend(), 0);
  }
  ValueId x = operand(node, 0);
  if (const Node* before = produced_by(x, "Transpose")) {
    const std::vector<int64_t> first = before->attributes.get_ints("perm");
    for (int64_t& axis : permutation) axis = first[static_cast<size_t>(axis)];
    x = before->input(0);
  }
  // Axes of extent 1 may go anywhere without moving an element.
  std::vector<int64_t> moved;
  for (int64_t axis : permutation) {
    if (build_.shape(x)[static_cast<size_t>(axis)] != 1) moved.push_back(axis);
  }
  if (std::ranges::is_sorted(moved)) {
    return reshape(x, result_type(node).shape, result_name(node));
  }
  return build_.transpose(x, std::move(permutation), result_name(node));
}

ValueId Simplifier::expand(const Node& node) {
  ValueId x = operand(node, 0);
  while (const Node* before = produced_by(x, "Expand")) x = before->input(0);
  return build_.expand(x, result_type(node).shape, result_name(node));
}

ValueId Simplifier::slice(const Node& node) {
  const Shape& shape = old().shape(node.input(0));
  const auto starts = old().constant_ints(node.input(1));
  const auto given_axes = old().constant_ints(node.input(3));
  const auto steps = old().constant_ints(node.input(4));
  if (!starts || (node.input(3) && !given_axes) || (node.input(4) && !steps)) return {};
  std::vector<int64_t> begins(shape.size(), 0);
  std::vector<int64_t> ends = shape;
  for (size_t k = 0; k < starts->size(); ++k) {
    if (steps && (*steps)[k] != 1) return {};
    const size_t axis = given_axes ? ir::normalize_axis((*given_axes)[k], shape.size()) : k;
    const int64_t start = (*starts)[k] < 0 ? (*starts)[k] + shape[axis] : (*starts)[k];
    begins[axis] = std::clamp<int64_t>(start, 0, shape[axis]);
    ends[axis] = begins[axis] + result_type(node).shape[axis];
  }
  return build_.slice_all(operand(node, 0), begins, ends, result_name(node));
}

ValueId Simplifier::pad(const Node& node) {
  const auto pads = old().constant_ints(node.input(1));
  if (!pads) return {};
  if (std::ranges::all_of(*pads, [](int64_t count) { return count == 0; })) {
    return operand(node, 0);
  }
  const bool zero = !node.input(2) || is_zero(old(), node.input(2));
  const auto axes = old().constant_ints(node.input(3));
  if (!zero || node.attributes.get_string("mode", "constant") != "constant" ||
      (node.input(3) && !axes)) {
    return {};
  }
  // A negative count takes elements away.
  const Shape& shape = old().shape(node.input(0));
  std::vector<int64_t> before(shape.size(), 0);
  std::vector<int64_t> after(shape.size(), 0);
  std::vector<int64_t> begins(shape.size(), 0);
  std::vector<int64_t> ends = shape;
  const size_t count = pads->size() / 2;
  for (size_t k = 0; k < count; ++k) {
    const size_t axis = axes ? ir::normalize_axis((*axes)[k], shape.size()) : k;
    before[axis] = std::max<int64_t>((*pads)[k], 0);
    after[axis] = std::max<int64_t>((*pads)[k + count], 0);
    begins[axis] = std::max<int64_t>(-(*pads)[k], 0);
    ends[axis] = shape[axis] + std::min<int64_t>((*pads)[k + count], 0);
    if (begins[axis] > ends[axis]) return {};  // it takes some of the padding away, too
  }
  return build_.pad(build_.slice_all(operand(node, 0), begins, ends, result_name(node)), before,
                    after, result_name(node));
}

// Dropout that drops nothing; its mask is all true.
ValueId Simplifier::dropout(const Node& node) {
  const auto training = old().constant_ints(node.input(2));
  const auto ratio = uniform_constant(old(), node.input(1));
  const bool inference = !node.input(2) || (training && (*training)[0] == 0);
  if (!inference && !(ratio && *ratio == 0)) return {};
  if (node.output(1)) {
    rewriter_.map(node.output(1),
                  build_.expand(build_.scalar(ir::DataType::kBool, 1), old().shape(node.output(1)),
                                old().name_of(node.output(1))));
  }
  return operand(node, 0);
}

ValueId Simplifier::where(const Node& node) {
  const auto condition = affine_.find(node.input(0));
  if (!condition || !condition->uniform()) return {};
  return build_.expand(operand(node, condition->offset != 0 ? 1 : 2), result_type(node).shape,
                       result_name(node));
}

ValueId Simplifier::arithmetic(const Node& node) {
  const auto is_one = [&](size_t k) {
    const ValueId factor = node.input(k);
    return old().is_constant(factor) && old().type(factor).num_elements() == 1 &&
           !is_parameter_[factor.index()] && uniform_constant(old(), factor) == 1.0;
  };
  if (node.op == "Neg" || node.op == "Not") {
    const Node* before = produced_by(operand(node, 0), node.op);
    return before != nullptr ? before->input(0) : ValueId();
  }
  if (is_one(1) && keeps_type(node, 0)) return operand(node, 0);
  if (node.op == "Mul" && is_one(0) && keeps_type(node, 1)) return operand(node, 1);
  return {};
}

// The number that every entry of a floating-point tensor is, if that is known.
std::optional<double> Simplifier::fill_of(ValueId value) const {
  if (!value || !ir::is_floating(old().type(value).dtype)) return std::nullopt;
  if (old().is_constant(value)) {
    return is_parameter_[value.index()] ? std::nullopt : uniform_constant(old(), value);
  }
  const Node* node = old().producer(value);
  if (node == nullptr || !node->domain.empty()) return std::nullopt;
  if (node->op == "ConstantOfShape") {
    const ir::Tensor* fill = node->attributes.get_tensor("value");
    return fill == nullptr ? 0 : fill->value_as_double(0);
  }
  static const std::unordered_set<std::string> kKeepFill = {"Identity", "Reshape",   "Squeeze",
                                                            "Expand",   "Unsqueeze", "Transpose",
                                                            "Slice",    "ReduceMax", "ReduceMin"};
  return kKeepFill.contains(node->op) ? fill_of(node->input(0)) : std::nullopt;
}

// What zeros are added to.
ValueId Simplifier::sum(const Node& node) {
  for (const size_t k : {0, 1}) {
    if (fill_of(node.input(k)) == 0.0 && keeps_type(node, 1 - k)) return operand(node, 1 - k);
  }
  return {};
}

ValueId Simplifier::equality(const Node& node) {
  const auto left = fill_of(node.input(0));
  const auto right = fill_of(node.input(1));
  if (!left || !right) return {};
  const ValueId known = build_.scalar(ir::DataType::kBool, *left == *right ? 1 : 0);
  return build_.expand(known, result_type(node).shape, result_name(node));
}

// And with true, Or with false: the other operand. And with false, Or with true: a constant.
ValueId Simplifier::logic(const Node& node) {
  for (size_t k = 0; k < 2; ++k) {
    const auto known = affine_.find(node.input(k));
    if (!known || !known->uniform()) continue;
    const bool neutral = (known->offset != 0) == (node.op == "And");
    if (neutral) {
      return build_.expand(operand(node, 1 - k), result_type(node).shape, result_name(node));
    }
    return build_.expand(build_.scalar(ir::DataType::kBool, static_cast<double>(known->offset)),
                         result_type(node).shape, result_name(node));
  }
  return {};
}

// A sum, mean, product, maximum or minimum over axes of extent 1.
ValueId Simplifier::reduction(const Node& node) {
  static constexpr std::string_view kPlain[] = {"ReduceSum", "ReduceMean", "ReduceProd",
                                                "ReduceMax", "ReduceMin"};
  if (std::ranges::find(kPlain, node.op) == std::end(kPlain)) return {};
  if (old().type(node.input(0)).num_elements() != result_type(node).num_elements() ||
      result_type(node).num_elements() == 0) {
    return {};
  }
  return reshape(operand(node, 0), result_type(node).shape, result_name(node));
}

}  // namespace

Graph simplify_views(const Graph& graph) {
  Rewriter rewriter(graph);
  Simplifier simplifier(graph, rewriter);
  std::vector<bool> is_output(graph.values().size(), false);
  for (const ir::Output& output : graph.outputs()) is_output[output.value.index()] = true;
  for (const Node& node : graph.nodes()) {
    const bool standard = node.domain.empty() && node.output(0);
    const ValueId simple = standard ? simplifier.simplify(node) : ValueId();
    // An output of the graph must be computed by a node.
    const bool leaf = simple && is_output[node.output(0).index()] &&
                      rewriter.to().value(simple).kind != ir::ValueKind::kResult;
    if (!simple || leaf) {
      rewriter.copy(node);
    } else {
      rewriter.map(node.output(0), simple);
    }
  }
  return std::move(rewriter).finish();
}

}  // namespace autosp::transforms
