// Elementwise operators: every result dimension is parallel; operands broadcast.
#include "ir/known_values.h"
#include "shard/rule_table.h"

namespace autosp::shard {

namespace {

using LinearSets = std::vector<std::vector<size_t>>;
using LinearIn = LinearSets (*)(const ir::Graph&, const ir::Node&);

LinearSets never(const ir::Graph&, const ir::Node&) { return {}; }
LinearSets first_operand(const ir::Graph&, const ir::Node&) { return {{0}}; }
LinearSets either_operand(const ir::Graph&, const ir::Node&) { return {{0}, {1}}; }

LinearSets all_operands(const ir::Graph&, const ir::Node& node) {
  std::vector<size_t> all;
  for (size_t k = 0; k < node.inputs.size(); ++k) all.push_back(k);
  return {all};
}

// Integer division truncates: the terms of a sum may not be divided one by one.
LinearSets floating_dividend(const ir::Graph& graph, const ir::Node& node) {
  return ir::is_floating(graph.type(node.outputs[0]).dtype) ? LinearSets{{0}} : LinearSets{};
}

// Partial sums survive a cast that loses nothing a later sum would keep: counts to float32 and
// wider, floats to float32 and wider. A count rounded to 16 bits on every rank would not add up.
LinearSets widening_cast(const ir::Graph& graph, const ir::Node& node) {
  const ir::DataType from = graph.type(node.inputs[0]).dtype;
  const ir::DataType to = graph.type(node.outputs[0]).dtype;
  const bool wide = to == ir::DataType::kFloat32 || to == ir::DataType::kFloat64;
  const bool widens =
      wide && (ir::is_integer(from) ||
               (ir::is_floating(from) && ir::element_size(to) >= ir::element_size(from)));
  return widens ? LinearSets{{0}} : LinearSets{};
}

LinearSets branches_of_where(const ir::Graph& graph, const ir::Node& node) {
  LinearSets sets = {{1, 2}};
  if (is_zero(graph, node.inputs[1])) sets.push_back({2});
  if (is_zero(graph, node.inputs[2])) sets.push_back({1});
  return sets;
}

RuleRow row(const std::string& op, LinearIn linear) {
  return {op, [linear](const ir::Graph& graph, const ir::Node& node) -> std::optional<Rule> {
            Rule rule;
            const ir::Shape& result = graph.shape(node.outputs[0]);
            for (ValueId operand : node.inputs) {
              if (!operand) {
                rule.operands.emplace_back();
              } else {
                rule.operands.emplace_back(broadcast_factors(graph.shape(operand), result));
              }
            }
            rule.results = {numbered_factors(result)};
            rule.linear = linear(graph, node);
            return rule;
          }};
}

}  // namespace

std::vector<RuleRow> elementwise_rules() {
  std::vector<RuleRow> rows = {
      row("Add", all_operands),        row("Sub", all_operands),
      row("Sum", all_operands),        row("Mul", either_operand),
      row("Div", floating_dividend),   row("Neg", first_operand),
      row("Identity", first_operand),  row("Cast", widening_cast),
      row("Where", branches_of_where),
  };
  for (const char* op : {"Pow",         "Mod",
                         "Min",         "Max",
                         "Mean",        "And",
                         "Or",          "Xor",
                         "Not",         "Equal",
                         "Less",        "LessOrEqual",
                         "Greater",     "GreaterOrEqual",
                         "Abs",         "Sign",
                         "Exp",         "Log",
                         "Sqrt",        "Reciprocal",
                         "Sigmoid",     "Tanh",
                         "Erf",         "Gelu",
                         "Relu",        "LeakyRelu",
                         "Elu",         "Selu",
                         "Softplus",    "Softsign",
                         "HardSigmoid", "HardSwish",
                         "Mish",        "Celu",
                         "Floor",       "Ceil",
                         "Round",       "Sin",
                         "Cos",         "Tan",
                         "Asin",        "Acos",
                         "Atan",        "Sinh",
                         "Cosh",        "Asinh",
                         "Acosh",       "Atanh",
                         "IsNaN",       "IsInf",
                         "Clip",        "BitwiseAnd",
                         "BitwiseOr",   "BitwiseXor",
                         "BitwiseNot",  "PRelu"}) {
    rows.push_back(row(op, never));
  }
  return rows;
}

}  // namespace autosp::shard
