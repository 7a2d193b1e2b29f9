// Computes equal things once.
//
// Two nodes are equal when operator, attributes and operands are; constants are equal by content.
// Exporters repeat index guards, masks and transposes per use, and gradient graphs repeat the
// forward pass's; each copy would be planned, and perhaps exchanged, on its own. Random operators
// draw anew at each node and are never merged. Parameters that happen to hold equal numbers (every
// norm weight starts at 1) are different parameters.
#include <unordered_map>

#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/constants.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

void append_bytes(std::string& key, const void* data, size_t size) {
  key.append(reinterpret_cast<const char*>(&size), sizeof(size));
  key.append(static_cast<const char*>(data), size);
}

void append(std::string& key, const std::string& text) {
  append_bytes(key, text.data(), text.size());
}

void append(std::string& key, const ir::Tensor& tensor) {
  append(key, to_string(tensor.type()));
  append_bytes(key, tensor.bytes().data(), tensor.bytes().size());
}

void append(std::string& key, const ir::Attribute& attribute) {
  key.push_back(static_cast<char>(attribute.index()));
  std::visit(
      [&](const auto& value) {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_arithmetic_v<T>) {
          append_bytes(key, &value, sizeof(value));
        } else if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, ir::Tensor>) {
          append(key, value);
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          for (const std::string& item : value) append(key, item);
        } else {
          append_bytes(key, value.data(), value.size() * sizeof(value[0]));
        }
      },
      attribute);
}

std::string key_of(const Graph& from, const Node& node, const std::vector<ValueId>& operands) {
  std::string key;
  append(key, node.domain);
  append(key, node.op);
  for (ValueId operand : operands) {
    const size_t index = operand ? operand.index() : ~size_t{0};
    append_bytes(key, &index, sizeof(index));
  }
  for (ValueId output : node.outputs) append(key, output ? to_string(from.type(output)) : "");
  for (const auto& [name, attribute] : node.attributes) {
    append(key, name);
    append(key, attribute);
  }
  return key;
}

// Constants too large to be worth comparing are told apart by identity.
constexpr int64_t kComparedBytes = int64_t{1} << 22;

}  // namespace

Graph eliminate_common_subexpressions(const Graph& graph) {
  Rewriter rewriter(graph);
  const std::vector<bool> parameter = find_parameter_constants(graph);
  std::unordered_map<std::string, ValueId> constants;
  for (size_t v = 0; v < graph.values().size(); ++v) {
    const ir::Value& value = graph.values()[v];
    if (value.kind != ir::ValueKind::kConstant || parameter[v]) continue;
    if (value.type.num_bytes() > kComparedBytes) continue;
    std::string key;
    append(key, value.constant);
    const ValueId here = rewriter.mapped(ValueId(v));
    rewriter.map(ValueId(v), constants.emplace(std::move(key), here).first->second);
  }
  std::unordered_map<std::string, const Node*> seen;
  for (const Node& node : graph.nodes()) {
    if (is_random(node) || node.domain == ir::kAutospDomain) {
      rewriter.copy(node);
      continue;
    }
    const auto [found, is_new] =
        seen.emplace(key_of(graph, node, rewriter.mapped(node.inputs)), &node);
    if (is_new) {
      rewriter.copy(node);
      continue;
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) {
        rewriter.map(node.outputs[k], rewriter.mapped(found->second->outputs[k]));
      }
    }
  }
  return std::move(rewriter).finish();
}

}  // namespace autosp::transforms
