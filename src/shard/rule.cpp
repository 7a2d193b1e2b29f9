#include "shard/rule.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "shard/rule_table.h"

namespace autosp::shard {

namespace {

// One dimension as written: its symbols, or "..." for any number of leading dimensions.
struct Token {
  DimFactors symbols;
  bool ellipsis = false;
};

struct Pattern {
  bool is_data = true;
  std::vector<Token> tokens;
};

Pattern parse_pattern(const std::string& text, std::vector<Symbol>& coupled) {
  Pattern pattern;
  std::istringstream stream(text);
  std::string word;
  bool in_group = false;
  while (stream >> word) {
    if (word == "_") {
      pattern.is_data = false;
      continue;
    }
    if (word == "...") {
      pattern.tokens.push_back({.ellipsis = true});
      continue;
    }
    if (word == "1") {
      pattern.tokens.emplace_back();
      continue;
    }
    const bool opens = word.front() == '(';
    if (opens) word.erase(0, 1);
    const bool closes = word.back() == ')';
    if (closes) word.pop_back();
    if (word.back() == '!') {
      word.pop_back();
      coupled.push_back(word);
    }
    if (!in_group) pattern.tokens.emplace_back();
    pattern.tokens.back().symbols.push_back(word);
    in_group = (in_group || opens) && !closes;
  }
  return pattern;
}

std::vector<std::string> split_text(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (true) {
    const size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end == std::string::npos ? end : end - begin));
    if (end == std::string::npos) return parts;
    begin = end + separator.size();
  }
}

// How many dimensions "..." stands for in a value of this rank.
size_t ellipsis_length(const Pattern& pattern, size_t rank) {
  size_t explicit_dims = 0;
  bool has_ellipsis = false;
  for (const Token& token : pattern.tokens) {
    if (token.ellipsis) {
      has_ellipsis = true;
    } else {
      ++explicit_dims;
    }
  }
  AUTOSP_CHECK(has_ellipsis ? explicit_dims <= rank : explicit_dims == rank,
               "a rule of {} dimensions for a value of rank {}", explicit_dims, rank);
  return rank - explicit_dims;
}

ValueFactors instantiate(const Pattern& pattern, const ir::Shape& shape, size_t batch_rank) {
  ValueFactors result;
  const size_t length = ellipsis_length(pattern, shape.size());
  for (const Token& token : pattern.tokens) {
    if (!token.ellipsis) {
      result.push_back(token.symbols);
      continue;
    }
    for (size_t k = 0; k < length; ++k) {
      result.push_back({fmt::format("b{}", batch_rank - length + k)});
    }
  }
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 1) result[d].clear();
  }
  return result;
}

std::string print_value(const Rule& rule, const ValueFactors& dims) {
  std::vector<std::string> words;
  for (const DimFactors& symbols : dims) {
    std::vector<std::string> marked;
    for (const Symbol& symbol : symbols) {
      marked.push_back(symbol + (rule.is_coupled(symbol) ? "!" : ""));
    }
    if (marked.empty()) {
      words.emplace_back("1");
    } else if (marked.size() == 1) {
      words.push_back(marked[0]);
    } else {
      words.push_back(fmt::format("({})", fmt::join(marked, " ")));
    }
  }
  return words.empty() ? "scalar" : fmt::format("{}", fmt::join(words, " "));
}

}  // namespace

bool Rule::is_coupled(const Symbol& symbol) const {
  return std::ranges::find(coupled, symbol) != coupled.end();
}

std::string Rule::to_string() const {
  if (is_view) return "view: the flattened operand is the flattened result";
  std::vector<std::string> left;
  std::vector<std::string> right;
  for (const auto& operand : operands) {
    left.push_back(operand ? print_value(*this, *operand) : std::string("_"));
  }
  for (const auto& result : results) right.push_back(print_value(*this, result));
  std::string text = fmt::format("{} -> {}", fmt::join(left, ", "), fmt::join(right, ", "));
  if (results_sum) text += "; results sum over what they lack";
  for (const Window& window : windows) {
    text += fmt::format("; {}[i] = {}[i{:+d}]", window.to, window.from, window.offset);
  }
  return text;
}

Rule parse_rule(const std::string& row, const ir::Graph& graph, const ir::Node& node) {
  Rule rule;
  const auto sides = split_text(row, "->");
  AUTOSP_CHECK(sides.size() == 2, "rule '{}' has no single '->'", row);
  std::vector<Pattern> operands;
  std::vector<Pattern> results;
  for (const auto& text : split_text(sides[0], ","))
    operands.push_back(parse_pattern(text, rule.coupled));
  for (const auto& text : split_text(sides[1], ","))
    results.push_back(parse_pattern(text, rule.coupled));

  size_t batch_rank = 0;
  auto widest = [&](const std::vector<Pattern>& patterns, const std::vector<ValueId>& values) {
    for (size_t k = 0; k < values.size() && k < patterns.size(); ++k) {
      if (!values[k] || !patterns[k].is_data) continue;
      batch_rank =
          std::max(batch_rank, ellipsis_length(patterns[k], graph.shape(values[k]).size()));
    }
  };
  widest(operands, node.inputs);
  widest(results, node.outputs);

  for (size_t k = 0; k < node.inputs.size(); ++k) {
    if (!node.inputs[k] || k >= operands.size() || !operands[k].is_data) {
      rule.operands.emplace_back();
      continue;
    }
    rule.operands.emplace_back(instantiate(operands[k], graph.shape(node.inputs[k]), batch_rank));
  }
  for (size_t k = 0; k < node.outputs.size(); ++k) {
    if (!node.outputs[k]) {
      rule.results.emplace_back();
      continue;
    }
    AUTOSP_CHECK(k < results.size(), "rule '{}' lacks result {}", row, k);
    rule.results.push_back(instantiate(results[k], graph.shape(node.outputs[k]), batch_rank));
  }
  return rule;
}

std::optional<Rule> rule_of(const ir::Graph& graph, const ir::Node& node) {
  for (const RuleRow& row : rule_table()) {
    if (row.domain == node.domain && row.op == node.op) return row.make(graph, node);
  }
  return std::nullopt;
}

std::vector<std::string> operators_with_rules() {
  std::vector<std::string> names;
  for (const RuleRow& row : rule_table()) {
    names.push_back(row.domain.empty() ? row.op : row.domain + "::" + row.op);
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace autosp::shard
