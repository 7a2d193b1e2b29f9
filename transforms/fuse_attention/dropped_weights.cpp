#include "transforms/fuse_attention/dropped_weights.h"

#include <algorithm>

#include "ir/operator_traits.h"
#include "transforms/canonicalize/constants.h"
#include "transforms/fuse_attention/black_box.h"

namespace autosp::transforms::fusion {

using ir::Graph;
using ir::Node;
using ir::Tensor;

namespace {

constexpr int64_t kNumbers = int64_t{1} << 24;  // that a draw can be, times 2^-24

bool draws(const GraphFacts& facts, ValueId value, int depth) {
  const Node* node = facts.graph().producer(value);
  if (node == nullptr || depth == 0) return false;
  if (is_random(*node)) return true;
  return facts.home_positions(value) >= 2 && std::ranges::any_of(node->inputs, [&](ValueId input) {
           return input && draws(facts, input, depth - 1);
         });
}

bool moves(const Node& node) { return fusion::is_view(node) || node.is("Expand"); }

// One element of a term as a function of the random number it is made of: a monotonic one, as every
// step on the way is, so that what it is at two numbers it is at all between them.
class MonotonicFunction {
 public:
  MonotonicFunction(const GraphFacts& facts, const Cutout& cutout, ValueId inside)
      : facts_(facts), cutout_(cutout), result_(inside) {
    visit(inside);
    if (!draw_) refuse("'{}' is random, and not by draws of one operator", name());
    for (ValueId value : made_bool_) {  // any number but 0 is true: not monotonic across it
      if (value_at(value, 0) * value_at(value, kNumbers - 1) < 0) refuse_choice("Cast");
    }
  }

  ValueId draw() const { return draw_; }

  // For the number k * 2^-24.
  double at(int64_t k) const { return value_at(result_, k); }

 private:
  double value_at(ValueId wanted, int64_t k) const {
    std::vector<Tensor> values(cutout_.graph.values().size());
    values[draw_.index()] = scalar(draw_, static_cast<double>(k) * 0x1p-24);
    for (const auto& [value, number] : known_) values[value.index()] = scalar(value, number);
    for (const NodeId id : steps_) {
      const Node& node = cutout_.graph.node(id);
      const ValueId output = node.outputs[0];
      if (moves(node)) {
        values[output.index()] = values[node.inputs[0].index()];
        continue;
      }
      std::vector<Tensor> operands;
      for (ValueId input : node.inputs) {
        operands.push_back(input ? values[input.index()] : Tensor());
      }
      values[output.index()] =
          evaluate_node(node, operands, {{cutout_.graph.type(output).dtype, {}}})[0];
    }
    return values[wanted.index()].value_as_double(0);
  }

  const std::string& name() const { return cutout_.graph.name_of(result_); }

  Tensor scalar(ValueId like, double number) const {
    return Tensor::filled({cutout_.graph.type(like).dtype, {}}, number);
  }

  // Whether a number is known before the run; else it varies with the draw.
  bool visit(ValueId value) {
    if (known_.contains(value) || constants_.contains(value)) return true;
    if (value == draw_ || made_.contains(value)) return false;
    const Graph& graph = cutout_.graph;
    if (const auto uniform = cutout_.uniform.find(value); uniform != cutout_.uniform.end()) {
      known_[value] = uniform->second;
      return true;
    }
    const Node* node = graph.producer(value);
    if (node == nullptr) return visit_leaf(value);
    std::vector<size_t> varying;
    for (size_t n = 0; n < (moves(*node) ? 1 : node->inputs.size()); ++n) {
      if (node->inputs[n] && !visit(node->inputs[n])) varying.push_back(n);
    }
    if (varying.empty()) {
      constants_.insert(value);
      steps_.push_back(graph.value(value).producer);
      return true;
    }
    if (!is_monotonic(*node, varying)) refuse_choice(node->op);
    if (node->is("Cast") && graph.type(value).dtype == ir::DataType::kBool) {
      made_bool_.push_back(node->inputs[0]);
    }
    made_.insert(value);
    steps_.push_back(graph.value(value).producer);
    return false;
  }

  [[noreturn]] void refuse_choice(const std::string& op) const {
    refuse("'{}' is random, and no choice of what is kept: it is made by {}", name(), op);
  }

  // Narrow integers wrap.
  static bool keeps_order(ir::DataType to) {
    return is_floating(to) || to == ir::DataType::kInt64 || to == ir::DataType::kInt32 ||
           to == ir::DataType::kBool;
  }

  // Of one operand, the others known. What a Cast to bool asks besides, the constructor does.
  bool is_monotonic(const Node& node, const std::vector<size_t>& varying) const {
    static const std::unordered_set<std::string> kOps = {
        "Add",  "Sub",         "Mul",     "Neg",           "Not",     "Floor",
        "Ceil", "Round",       "Less",    "LessOrEqual",   "Greater", "Clip",
        "Relu", "HardSigmoid", "Sigmoid", "GreaterOrEqual"};
    if (varying.size() != 1) return false;
    if (moves(node)) return true;
    if (node.is("Cast")) return keeps_order(cutout_.graph.type(node.outputs[0]).dtype);
    const bool first = varying[0] == 0;
    return node.domain.empty() &&
           (kOps.contains(node.op) || (first && (node.is("Div") || node.is("Where"))));
  }

  bool visit_leaf(ValueId value) {
    const Node* producer = facts_.graph().producer(cutout_.original[value.index()]);
    if (producer == nullptr || !ir::is_draw(*producer)) {
      refuse("'{}' is random, and depends on '{}', which is no draw", name(),
             cutout_.graph.name_of(value));
    }
    if (draw_) refuse("'{}' is random, and made of more than one draw", name());
    draw_ = value;
    return false;
  }

  const GraphFacts& facts_;
  const Cutout& cutout_;
  ValueId result_;
  ValueId draw_;
  std::map<ValueId, double> known_;
  std::unordered_set<ValueId> constants_;  // computed from those
  std::unordered_set<ValueId> made_;       // computed from the draw
  std::vector<ValueId> made_bool_;         // numbers that a Cast makes bools of
  std::vector<NodeId> steps_;
};

// The stride of a list of atoms, major to minor, as one index.
int64_t stride_of(const LocalFactors& factors, const AtomList& atoms,
                  const std::map<AtomId, int64_t>& strides, const std::string& name) {
  int64_t stride = 0;
  int64_t extent = 1;  // of the atoms so far, minor first
  for (size_t a = atoms.size(); a-- > 0;) {
    const auto found = strides.find(atoms[a]);
    const int64_t own = found == strides.end() ? 0 : found->second;
    if (extent == 1) stride = own;
    if (own != stride * extent) refuse("'{}' is drawn in an order of its own", name);
    extent *= factors.size(atoms[a]);
  }
  return stride;
}

}  // namespace

bool is_drawn(const GraphFacts& facts, ValueId root) {
  constexpr int kDepth = 40;
  return draws(facts, root, kDepth);
}

DropTerm read_drop_term(const GraphFacts& facts, const Cutout& cutout, ValueId inside) {
  const MonotonicFunction term(facts, cutout, inside);
  const double first = term.at(0);
  const double last = term.at(kNumbers - 1);
  // Where it changes: the least number that gives `last`.
  int64_t low = 0;
  int64_t high = kNumbers - 1;
  if (first == last) high = 0;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (term.at(middle) == last ? high : low) = middle;
  }
  // It changes but once: monotonic, it is what it is at both ends of a stretch in all of it.
  if (first != last && (term.at(high - 1) != first || term.at(high) != last)) {
    refuse("'{}' is random, and no choice of what is kept", cutout.graph.name_of(inside));
  }
  const double kept = first == 0 ? last : first;
  const bool drops = first == last || first == 0 || last == 0;
  if (!drops || kept == 0 || !std::isfinite(kept)) {
    refuse("'{}' is random, and no choice of what is kept", cutout.graph.name_of(inside));
  }
  const float edge = static_cast<float>(high) * 0x1p-24F;
  DropTerm result{
      .numbers = cutout.original[term.draw().index()], .inside = term.draw(), .kept = kept};
  (first == 0 ? result.from : result.below) = edge;
  if (first == last) result.below = 1;
  return result;
}

reference::AttentionDropout place_draws(const GraphFacts& facts, const LocalFactors& factors,
                                        const CanonicalFactors& canonical, const DropTerm& term) {
  const Node& draw = *facts.graph().producer(term.numbers);
  if (draw.attributes.has("whole"))
    refuse("'{}' draws a part", facts.graph().name_of(term.numbers));
  std::map<AtomId, int64_t> strides;
  const AtomList atoms = factors.atoms(term.inside);
  int64_t stride = 1;
  for (size_t a = atoms.size(); a-- > 0;) {
    strides[atoms[a]] = stride;
    stride *= factors.size(atoms[a]);
  }
  reference::AttentionDropout dropout;
  dropout.key = {static_cast<uint64_t>(draw.attributes.get_int("seed", 0)),
                 static_cast<uint32_t>(draw.attributes.get_int("stream", 0))};
  dropout.from = term.from;
  dropout.below = term.below;
  const std::array lists = {&canonical.batch, &canonical.kv_heads, &canonical.groups,
                            &canonical.queries, &canonical.keys};
  const std::string& name = facts.graph().name_of(term.numbers);
  for (size_t d = 0; d < lists.size(); ++d) {
    dropout.strides[d] = stride_of(factors, *lists[d], strides, name);
  }
  return dropout;
}

}  // namespace autosp::transforms::fusion
