#include "transforms/open_length/same_graph.h"

#include <fmt/format.h>

#include <algorithm>

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::ValueKind;

namespace {

bool same(const ir::Attribute& a, const ir::Attribute& b) {
  if (a.index() != b.index()) return false;
  return std::visit(
      [&](const auto& value) {
        using Type = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<Type, ir::Tensor>) {
          return value.identical(std::get<Type>(b));
        } else {
          return value == std::get<Type>(b);
        }
      },
      a);
}

class Comparison {
 public:
  Comparison(const Graph& a, const Graph& b) : a_(a), b_(b), counterparts_(a.values().size()) {}

  std::optional<std::string> run() {
    if (a_.inputs().size() != b_.inputs().size()) return "the inputs";
    for (size_t k = 0; k < a_.inputs().size(); ++k) {
      if (a_.name_of(a_.inputs()[k]) != b_.name_of(b_.inputs()[k]) ||
          !pair(a_.inputs()[k], b_.inputs()[k])) {
        return fmt::format("input '{}'", a_.name_of(a_.inputs()[k]));
      }
    }
    for (size_t n = 0; n < std::min(a_.nodes().size(), b_.nodes().size()); ++n) {
      if (!same_node(a_.node(NodeId(n)), b_.node(NodeId(n)))) {
        return fmt::format("node '{}'", a_.describe(a_.node(NodeId(n))));
      }
    }
    if (a_.nodes().size() != b_.nodes().size()) return "the number of nodes";
    if (a_.outputs().size() != b_.outputs().size()) return "the outputs";
    for (size_t k = 0; k < a_.outputs().size(); ++k) {
      if (a_.outputs()[k].name != b_.outputs()[k].name ||
          !same_value(a_.outputs()[k].value, b_.outputs()[k].value)) {
        return fmt::format("output '{}'", a_.outputs()[k].name);
      }
    }
    return std::nullopt;
  }

 private:
  bool pair(ValueId x, ValueId y) {
    if (x.valid() != y.valid()) return false;
    if (!x) return true;
    counterparts_[x.index()] = y;
    return a_.type(x) == b_.type(y);
  }

  bool same_value(ValueId x, ValueId y) const {
    if (x.valid() != y.valid()) return false;
    if (!x) return true;
    const ir::Value& here = a_.value(x);
    const ir::Value& there = b_.value(y);
    if (here.kind != there.kind || here.type != there.type) return false;
    if (here.kind == ValueKind::kConstant) return here.constant.identical(there.constant);
    if (here.kind == ValueKind::kExternal) {
      return here.external.location == there.external.location &&
             here.external.offset == there.external.offset;
    }
    return counterparts_[x.index()] == y;
  }

  bool same_node(const Node& x, const Node& y) {
    if (x.op != y.op || x.domain != y.domain || x.name != y.name || x.phase != y.phase ||
        x.inputs.size() != y.inputs.size() || x.outputs.size() != y.outputs.size()) {
      return false;
    }
    for (size_t k = 0; k < x.inputs.size(); ++k) {
      if (!same_value(x.inputs[k], y.inputs[k])) return false;
    }
    for (size_t k = 0; k < x.outputs.size(); ++k) {
      if (!pair(x.outputs[k], y.outputs[k])) return false;
    }
    return same_attributes(x.attributes, y.attributes);
  }

  const Graph& a_;
  const Graph& b_;
  std::vector<ValueId> counterparts_;  // by value of `a`
};

}  // namespace

bool same_attributes(const ir::Attributes& a, const ir::Attributes& b) {
  return std::ranges::equal(a, b, [](const auto& x, const auto& y) {
    return x.first == y.first && same(x.second, y.second);
  });
}

std::optional<std::string> first_difference(const Graph& a, const Graph& b) {
  return Comparison(a, b).run();
}

}  // namespace autosp::transforms
