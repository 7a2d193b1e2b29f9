// Contractions: a factor that both operands hold and the result lacks is summed over.
#include "shard/rule_table.h"

namespace autosp::shard {

namespace {

std::optional<Rule> matmul(const ir::Graph& graph, const ir::Node& node) {
  const bool vector_left = graph.shape(node.inputs[0]).size() == 1;
  const bool vector_right = graph.shape(node.inputs[1]).size() == 1;
  std::string row = "... m k, ... k n -> ... m n";
  if (vector_left && vector_right) {
    row = "k, k -> ";
  } else if (vector_left) {
    row = "k, ... k n -> ... n";
  } else if (vector_right) {
    row = "... m k, k -> ... m";
  }
  Rule rule = parse_rule(row, graph, node);
  rule.linear = {{0}, {1}};
  return rule;
}

std::optional<Rule> gemm(const ir::Graph& graph, const ir::Node& node) {
  const char* left = node.attributes.get_int("transA", 0) != 0 ? "k m" : "m k";
  const char* right = node.attributes.get_int("transB", 0) != 0 ? "n k" : "k n";
  if (!node.input(2)) {
    Rule rule = parse_rule(fmt::format("{}, {} -> m n", left, right), graph, node);
    rule.linear = {{0}, {1}};
    return rule;
  }
  // With a bias, k may not be split: the bias would be added once per rank.
  const size_t bias_rank = graph.shape(node.inputs[2]).size();
  const char* bias = bias_rank == 2 ? "m n" : bias_rank == 1 ? "n" : "";
  std::string row = fmt::format("{}, {}, {} -> m n", left, right, bias);
  Rule rule = parse_rule(row, graph, node);
  rule.coupled = {"k"};
  return rule;
}

// Positions meet their neighbours; channels contract, those of a group among themselves, so grouped
// channels do not split. Conv's weights are [out, in, window], ConvTranspose's [in, out, window].
std::optional<Rule> convolution(const ir::Graph& graph, const ir::Node& node, bool transposed) {
  const size_t spatial = graph.shape(node.inputs[0]).size() - 2;
  const bool grouped = node.attributes.get_int("group", 1) != 1;
  std::string in;
  std::string window;
  std::string out;
  for (size_t k = 0; k < spatial; ++k) {
    in += fmt::format(" x{}!", k);
    window += fmt::format(" w{}!", k);
    out += fmt::format(" y{}!", k);
  }
  const char* weights = grouped ? (transposed ? "i! c!" : "o! c!") : (transposed ? "i o" : "o i");
  const char* coupled = grouped ? "!" : "";
  const std::string row = fmt::format("n i{}{}, {}{}, o{} -> n o{}{}", coupled, in, weights, window,
                                      coupled, coupled, out);
  Rule rule = parse_rule(row, graph, node);
  // A bias would be added once per rank.
  if (node.input(2)) rule.coupled.emplace_back("i");
  if (!node.input(2)) rule.linear = {{0}, {1}};
  return rule;
}

}  // namespace

std::vector<RuleRow> contraction_rules() {
  return {
      {"MatMul", matmul},
      {"Gemm", gemm},
      {"Conv", [](const auto& graph, const auto& node) { return convolution(graph, node, false); }},
      {"ConvTranspose",
       [](const auto& graph, const auto& node) { return convolution(graph, node, true); }}};
}

}  // namespace autosp::shard
