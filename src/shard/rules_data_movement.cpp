// Operators that move elements without computing: views, transposes, windows, joins, fills.
#include <algorithm>

#include "ir/known_values.h"
#include "shard/rule_table.h"

namespace autosp::shard {

namespace {

std::optional<Rule> view(const ir::Graph&, const ir::Node& node) {
  Rule rule;
  rule.is_view = true;
  rule.operands.resize(node.inputs.size());
  rule.results.resize(1);
  rule.linear = {{0}};
  return rule;
}

std::optional<Rule> transpose(const ir::Graph& graph, const ir::Node& node) {
  Rule rule;
  const ValueFactors in = numbered_factors(graph.shape(node.inputs[0]));
  auto permutation = node.attributes.get_ints("perm");
  if (permutation.empty()) {
    for (size_t d = in.size(); d-- > 0;) permutation.push_back(static_cast<int64_t>(d));
  }
  ValueFactors out;
  for (int64_t axis : permutation) out.push_back(in[static_cast<size_t>(axis)]);
  rule.operands = {in};
  rule.results = {out};
  rule.linear = {{0}};
  return rule;
}

// Not linear: a partial sum is reduced before it grows.
std::optional<Rule> expand(const ir::Graph& graph, const ir::Node& node) {
  Rule rule;
  const ir::Shape& result = graph.shape(node.outputs[0]);
  rule.operands = {broadcast_factors(graph.shape(node.inputs[0]), result), std::nullopt};
  rule.results = {numbered_factors(result)};
  return rule;
}

// A dimension that is cut gets factors of its own, related to the operand's by a window.
Rule windowed(const ir::Graph& graph, const ir::Node& node, const std::vector<int64_t>& offsets) {
  Rule rule;
  const ir::Shape& in = graph.shape(node.inputs[0]);
  const ir::Shape& out = graph.shape(node.outputs[0]);
  rule.operands = {numbered_factors(in)};
  rule.operands.resize(node.inputs.size());
  rule.results = {numbered_factors(out)};
  rule.linear = {{0}};
  for (size_t d = 0; d < in.size(); ++d) {
    if (in[d] == out[d] && offsets[d] == 0) continue;
    const Symbol from = fmt::format("d{}", d);
    const Symbol to = fmt::format("o{}", d);
    if (out[d] != 1) rule.results[0][d] = {to};
    // A window of one index, or onto one, leaves nothing to split on one side.
    if (in[d] == 1 || out[d] == 1) {
      rule.coupled.push_back(in[d] == 1 ? to : from);
      continue;
    }
    rule.windows.push_back({from, to, offsets[d]});
  }
  return rule;
}

// Normal form: begins, ends, axes, steps are constants. A step other than 1 couples its axis. An
// axis that is reversed as a whole stays the same factor: the sequence, read backwards, is a
// sequence still.
std::optional<Rule> slice(const ir::Graph& graph, const ir::Node& node) {
  const auto begins = graph.constant_ints(node.input(1));
  if (!begins || !graph.is_constant(node.input(2))) return std::nullopt;
  auto axes = graph.constant_ints(node.input(3));
  auto steps = graph.constant_ints(node.input(4));
  const ir::Shape& in = graph.shape(node.inputs[0]);
  if ((node.input(3) && !axes) || (node.input(4) && !steps)) return std::nullopt;
  if (!axes) {
    axes.emplace();
    for (size_t d = 0; d < begins->size(); ++d) axes->push_back(static_cast<int64_t>(d));
  }
  std::vector<int64_t> offsets(in.size(), 0);
  std::vector<size_t> stepped;
  for (size_t k = 0; k < axes->size(); ++k) {
    const size_t axis = ir::normalize_axis((*axes)[k], in.size());
    int64_t begin = (*begins)[k];
    if (begin < 0) begin += in[axis];
    offsets[axis] = std::clamp<int64_t>(begin, 0, in[axis]);
    if (steps && (*steps)[k] != 1) stepped.push_back(axis);
  }
  for (size_t axis : stepped) offsets[axis] = 0;
  Rule rule = windowed(graph, node, offsets);
  for (size_t axis : stepped) {
    const Symbol from = fmt::format("d{}", axis);
    const Symbol to = fmt::format("o{}", axis);
    rule.coupled.push_back(from);
    std::erase_if(rule.windows, [&](const Window& window) { return window.from == from; });
    if (rule.results[0][axis].empty() || in[axis] == graph.shape(node.outputs[0])[axis]) continue;
    rule.results[0][axis] = {to};
    rule.coupled.push_back(to);
  }
  return rule;
}

// Only zero padding is a window: another fill, or a mode that reads the tensor, couples its axes.
std::optional<Rule> pad(const ir::Graph& graph, const ir::Node& node) {
  const auto pads = graph.constant_ints(node.input(1));
  if (!pads || node.input(3)) return std::nullopt;
  const size_t rank = graph.shape(node.inputs[0]).size();
  std::vector<int64_t> offsets(rank);
  for (size_t d = 0; d < rank; ++d) offsets[d] = -(*pads)[d];
  Rule rule = windowed(graph, node, offsets);
  const bool constant_mode = node.attributes.get_string("mode", "constant") == "constant";
  const bool zero_fill = !node.input(2) || is_zero(graph, node.input(2));
  if (!zero_fill) rule.linear.clear();
  if (!constant_mode) {
    rule.linear.clear();
    for (const Window& window : rule.windows) {
      rule.coupled.insert(rule.coupled.end(), {window.from, window.to});
    }
    rule.windows.clear();
  }
  return rule;
}

// Equal parts: the joined dimension is (part, index); unequal ones couple it. The canonical form
// has equal parts only.
std::optional<Rule> join(const ir::Graph& graph, const ir::Node& node, bool is_split) {
  const ValueId whole = is_split ? node.inputs[0] : node.outputs[0];
  const std::vector<ValueId>& parts = is_split ? node.outputs : node.inputs;
  const ir::Shape& shape = graph.shape(whole);
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), shape.size());
  const int64_t extent = graph.shape(parts[0])[axis];
  const bool equal = std::ranges::all_of(
      parts, [&](ValueId part) { return part && graph.shape(part)[axis] == extent; });

  ValueFactors big = numbered_factors(shape);
  std::vector<ValueFactors> small(parts.size(), big);
  Rule rule;
  const Symbol index = fmt::format("d{}", axis);
  if (equal) {
    big[axis].clear();
    if (parts.size() > 1) big[axis].emplace_back("part");
    if (extent > 1) big[axis].push_back(index);
    for (auto& factors : small) {
      factors[axis].clear();
      if (extent > 1) factors[axis].push_back(index);
    }
    rule.sizes["part"] = static_cast<int64_t>(parts.size());
    rule.coupled = {"part"};
  } else {
    rule.coupled = {index};
    for (size_t k = 0; k < parts.size(); ++k) {
      const bool empty = !parts[k] || graph.shape(parts[k])[axis] == 1;
      small[k][axis] = empty ? DimFactors{} : DimFactors{fmt::format("part{}", k)};
      rule.coupled.push_back(fmt::format("part{}", k));
    }
  }
  if (is_split) {
    rule.operands = {big};
    rule.operands.resize(node.inputs.size());
    rule.results = small;
    rule.linear = {{0}};
  } else {
    for (auto& factors : small) rule.operands.emplace_back(factors);
    rule.results = {big};
    rule.linear.emplace_back();
    for (size_t k = 0; k < parts.size(); ++k) rule.linear[0].push_back(k);
  }
  return rule;
}

std::optional<Rule> tile(const ir::Graph& graph, const ir::Node& node) {
  const auto repeats = graph.constant_ints(node.input(1));
  if (!repeats) return std::nullopt;
  Rule rule;
  const ir::Shape& in = graph.shape(node.inputs[0]);
  rule.operands = {numbered_factors(in), std::nullopt};
  rule.results = {numbered_factors(in)};
  for (size_t d = 0; d < in.size(); ++d) {
    if ((*repeats)[d] == 1) continue;
    const Symbol copies = fmt::format("copy{}", d);
    rule.results[0][d].insert(rule.results[0][d].begin(), copies);
    rule.sizes[copies] = (*repeats)[d];
  }
  return rule;
}

// Each rank makes its own piece of a fill or a range.
std::optional<Rule> fill(const ir::Graph& graph, const ir::Node& node) {
  Rule rule;
  rule.operands.resize(node.inputs.size());
  rule.results = {numbered_factors(graph.shape(node.outputs[0]))};
  return rule;
}

// Compares row and column positions of the last two axes.
std::optional<Rule> trilu(const ir::Graph& graph, const ir::Node& node) {
  Rule rule = parse_rule("... x! y!, _ -> ... x! y!", graph, node);
  rule.linear = {{0}};
  return rule;
}

// ONNX's own random operators, where passes have left any: every rank draws the same whole tensor.
std::optional<Rule> draw(const ir::Graph& graph, const ir::Node& node) {
  Rule rule;
  rule.operands.resize(node.inputs.size());
  rule.results = {numbered_factors(graph.shape(node.outputs[0]))};
  for (const DimFactors& factors : rule.results[0]) {
    rule.coupled.insert(rule.coupled.end(), factors.begin(), factors.end());
  }
  return rule;
}

// autosp::RandomUniform draws by the place of an element in the whole: each rank its own piece.
std::optional<Rule> draw_by_place(const ir::Graph& graph, const ir::Node& node) {
  Rule rule;
  for (ValueId step : node.inputs) {
    rule.operands.emplace_back(step ? std::optional(ValueFactors()) : std::nullopt);
  }
  rule.results = {numbered_factors(graph.shape(node.outputs[0]))};
  return rule;
}

}  // namespace

std::vector<RuleRow> data_movement_rules() {
  return {{"Reshape", view},
          {"Squeeze", view},
          {"Unsqueeze", view},
          {"Flatten", view},
          {"Transpose", transpose},
          {"Expand", expand},
          {"Slice", slice},
          {"Pad", pad},
          {"Split", [](const auto& graph, const auto& node) { return join(graph, node, true); }},
          {"Concat", [](const auto& graph, const auto& node) { return join(graph, node, false); }},
          {"Tile", tile},
          {"ConstantOfShape", fill},
          {"Range", fill},
          {"Trilu", trilu},
          {"RandomUniform", draw},
          {"RandomNormal", draw},
          {"RandomUniformLike", draw},
          {"RandomNormalLike", draw},
          {"RandomUniform", draw_by_place, std::string(ir::kAutospDomain)}};
}

}  // namespace autosp::shard
