#include "transforms/decompose_draws.h"

#include <algorithm>

#include "base/philox.h"
#include "ir/operator_traits.h"
#include "ir/rewriter.h"
#include "reference/draws.h"

namespace autosp::transforms {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Node;

namespace {

// 32-bit words in int64: what stays below 2^63 does not wrap, and every runtime has the operators.
class PhiloxBuilder {
 public:
  explicit PhiloxBuilder(Builder& build) : build_(build) {}

  // Numbers in [0, 1), one for each of the indices, in their shape.
  ValueId uniform(ValueId index, reference::DrawKey key, ValueId step) {
    constexpr int64_t kPerBlock = 4;
    const ValueId block = divided(index, kPerBlock);
    const ValueId lane = binary("Sub", index, binary("Mul", block, number(kPerBlock)));
    std::array<ValueId, 4> counter = {low(block, kWord), divided(block, kWord), number(key.stream),
                                      step ? low(step, kWord) : number(0)};
    philox::Key round_key = {static_cast<uint32_t>(key.seed),
                             static_cast<uint32_t>(key.seed >> 32U)};
    for (int round = 0; round < philox::kRounds; ++round) {
      const auto [a_high, a_low] = product(counter[0], philox::kMultipliers[0]);
      const auto [b_high, b_low] = product(counter[2], philox::kMultipliers[1]);
      counter = {exclusive_or(b_high, counter[1], round_key[0]), b_low,
                 exclusive_or(a_high, counter[3], round_key[1]), a_low};
      for (size_t k = 0; k < 2; ++k) round_key[k] += philox::kKeySteps[k];
    }
    ValueId word = counter[3];
    for (int64_t k = 2; k >= 0; --k) {
      word = build_.where(binary("Equal", lane, number(k)), counter[static_cast<size_t>(k)], word);
    }
    const ValueId digits = build_.cast(divided(word, 256), DataType::kFloat32);
    return build_.binary("Mul", digits, build_.scalar(DataType::kFloat32, 0x1p-24));
  }

 private:
  static constexpr int64_t kWord = int64_t{1} << 32U;
  static constexpr int64_t kHalf = int64_t{1} << 16U;

  ValueId number(int64_t value) {
    return build_.constant(ir::Tensor::from_values<int64_t>({}, std::vector{value}));
  }
  ValueId binary(const char* op, ValueId a, ValueId b) { return build_.binary(op, a, b); }
  ValueId divided(ValueId x, int64_t by) { return binary("Div", x, number(by)); }
  // x modulo a power of 2.
  ValueId low(ValueId x, int64_t modulus) { return binary("BitwiseAnd", x, number(modulus - 1)); }

  // The upper and the lower word of x times the multiplier, by halves of x.
  std::pair<ValueId, ValueId> product(ValueId x, uint32_t multiplier) {
    const ValueId factor = number(multiplier);
    const ValueId lower = binary("Mul", low(x, kHalf), factor);
    const ValueId upper =
        binary("Add", binary("Mul", divided(x, kHalf), factor), divided(lower, kHalf));
    const ValueId low_word =
        binary("Add", binary("Mul", low(upper, kHalf), number(kHalf)), low(lower, kHalf));
    return {divided(upper, kHalf), low_word};
  }

  ValueId exclusive_or(ValueId a, ValueId b, uint32_t key) {
    return binary("BitwiseXor", binary("BitwiseXor", a, b), number(key));
  }

  Builder& build_;
};

// The number of every element of the box in the whole, in the box's shape.
ValueId indices(Builder& build, const reference::DrawnBox& box) {
  ValueId sum = build.constant(
      ir::Tensor(ir::Type{DataType::kInt64, box.extent.empty() ? ir::Shape{} : ir::Shape{1}}));
  int64_t stride = 1;
  for (size_t k = box.whole.size(); k-- > 0;) {
    std::vector<int64_t> along(static_cast<size_t>(box.extent[k]));
    for (size_t i = 0; i < along.size(); ++i) {
      along[i] = (box.begin[k] + static_cast<int64_t>(i)) * stride;
    }
    ir::Shape shape(box.whole.size() - k, 1);
    shape[0] = box.extent[k];
    sum = build.binary("Add", build.constant(ir::Tensor::from_values<int64_t>(shape, along)), sum);
    stride *= box.whole[k];
  }
  return sum;
}

ValueId decompose(Builder& build, const ir::Type& type, const Node& node, ValueId step) {
  const ValueId index = indices(build, reference::drawn_box(node.attributes));
  const reference::DrawKey key{static_cast<uint64_t>(node.attributes.get_int("seed", 0)),
                               static_cast<uint32_t>(node.attributes.get_int("stream", 0))};
  const ValueId drawn = PhiloxBuilder(build).uniform(index, key, step);
  return build.cast(build.reshape(drawn, type.shape), type.dtype);
}

}  // namespace

ValueId draw_numbers(Builder& build, ValueId index, reference::DrawKey key, ValueId step) {
  return PhiloxBuilder(build).uniform(index, key, step);
}

Graph decompose_draws(const Graph& graph) {
  if (std::ranges::none_of(graph.nodes(), ir::is_draw)) return graph;
  return rewrite_nodes(graph, [](ir::Rewriter& rewriter, const Node& node) {
    if (!ir::is_draw(node)) return false;
    const ValueId step = node.input(0) ? rewriter.mapped(node.input(0)) : ValueId();
    rewriter.map(node.outputs[0],
                 decompose(rewriter.build(), rewriter.from().type(node.outputs[0]), node, step));
    return true;
  });
}

std::optional<Graph> draw_body(const Graph& graph, const Node& node) {
  if (!ir::is_draw(node)) return std::nullopt;
  Graph body;
  body.opset = graph.opset;
  const ValueId step = node.input(0) ? body.add_input("x0", graph.type(node.input(0))) : ValueId();
  Builder build(body);
  body.add_output("y0", decompose(build, graph.type(node.outputs[0]), node, step));
  return ir::without_dead_nodes(body);
}

}  // namespace autosp::transforms
