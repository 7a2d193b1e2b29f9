// Random operators and dropout as draws, comparisons and selections (docs/random.md).
//
//   Dropout        u = draw;  mask = u >= ratio;  y = Where(mask, x / (1 - ratio), 0)
//   Bernoulli      draw < probability
//   RandomUniform  low + (high - low) * draw
//   RandomNormal   mean + scale * sqrt(-2 log(1 - draw)) * cos(2 pi * another draw)
//
// The draw alone is random, and it reads nothing but the number of the step: autosp::RandomUniform
// gives an element its number by its place, so every rank draws what it holds. The rest is
// elementwise. What is drawn follows from the node as the model has it: its seed, or else its name.
// Draw and ratio are compared as float32, as the operator's kernel compares them; 1 - ratio is
// never rounded to 16 bits.
#include <cmath>
#include <numbers>
#include <unordered_map>

#include "ir/operator_traits.h"
#include "ir/rewriter.h"
#include "reference/draws.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

class RandomLowering {
 public:
  explicit RandomLowering(const DrawOptions& options) : options_(options) {}

  // False for an operator that draws nothing.
  bool lower(Rewriter& rewriter, const Node& node) {
    static const std::unordered_map<std::string_view,
                                    bool (RandomLowering::*)(Rewriter&, const Node&)>
        kOperators = {{"Dropout", &RandomLowering::dropout},
                      {"Bernoulli", &RandomLowering::bernoulli},
                      {"RandomUniform", &RandomLowering::uniform},
                      {"RandomUniformLike", &RandomLowering::uniform},
                      {"RandomNormal", &RandomLowering::normal},
                      {"RandomNormalLike", &RandomLowering::normal}};
    const auto found = kOperators.find(node.op);
    if (!node.domain.empty() || found == kOperators.end()) return false;
    return (this->*found->second)(rewriter, node);
  }

 private:
  // float32 numbers in [0, 1) of the shape of the node's result 0.
  ValueId draw(Rewriter& rewriter, const Node& node, reference::DrawKey key) {
    Graph& graph = rewriter.to();
    const ir::Shape shape = rewriter.from().shape(node.output(0) ? node.output(0) : node.output(1));
    if (!step_ && !options_.step_input.empty()) {
      step_ = graph.add_input(options_.step_input, {DataType::kInt64, {}});
    }
    ir::Attributes attributes{{"seed", static_cast<int64_t>(key.seed)},
                              {"stream", int64_t{key.stream}},
                              {"shape", std::vector<int64_t>(shape)},
                              {"dtype", static_cast<int64_t>(DataType::kFloat32)}};
    const NodeId id =
        graph.add_node("RandomUniform", step_ ? std::vector{step_} : std::vector<ValueId>{},
                       {{DataType::kFloat32, shape}}, std::move(attributes),
                       std::string(ir::kAutospDomain), {}, node.name);
    return graph.node(id).outputs[0];
  }
  reference::DrawKey key_of(const Node& node) const {
    return reference::draw_key(node, options_.seed);
  }

  bool dropout(Rewriter& rewriter, const Node& node) {
    const Graph& graph = rewriter.from();
    const auto training = graph.constant_ints(node.input(2));
    if (!node.input(2) || (training && training->front() == 0)) return false;
    Builder& build = rewriter.build();
    const ValueId x = rewriter.mapped(node.input(0));
    const ValueId ratio = node.input(1) ? build.reshape(rewriter.mapped(node.input(1)), {})
                                        : build.scalar(DataType::kFloat32, 0.5);
    const auto final_name = [&](size_t k) {
      return training && node.output(k) ? graph.name_of(node.output(k)) : "";
    };
    ValueId mask = build.binary("GreaterOrEqual", draw(rewriter, node, key_of(node)),
                                build.cast(ratio, DataType::kFloat32), final_name(1));
    const DataType wide = wide_type(build.dtype(x));
    const ValueId kept = build.binary("Sub", build.scalar(wide, 1), build.cast(ratio, wide));
    const ValueId scaled =
        build.cast(build.binary("Div", build.cast(x, wide), kept), build.dtype(x));
    ValueId y = build.where(mask, scaled, build.scalar_like(x, 0), final_name(0));
    if (!training) {
      const ValueId trains = build.reshape(rewriter.mapped(node.input(2)), {});
      y = build.where(trains, y, x, graph.name_of(node.output(0)));
      mask = build.binary("Or", build.unary("Not", trains), mask,
                          node.output(1) ? graph.name_of(node.output(1)) : "");
    }
    rewriter.map(node.output(0), y);
    rewriter.map(node.output(1), mask);
    return true;
  }

  bool bernoulli(Rewriter& rewriter, const Node& node) {
    Builder& build = rewriter.build();
    ValueId probability = widen(build, rewriter.mapped(node.input(0)));
    const ValueId drawn = build.cast(draw(rewriter, node, key_of(node)), build.dtype(probability));
    const ValueId result = node.output(0);
    rewriter.map(result,
                 build.cast(build.binary("Less", drawn, probability),
                            rewriter.from().type(result).dtype, rewriter.from().name_of(result)));
    return true;
  }

  // In 16 bits a draw keeps as many digits as the type has below 1: rounding would give 1 itself.
  bool uniform(Rewriter& rewriter, const Node& node) {
    const double low = node.attributes.get_float("low", 0);
    const double high = node.attributes.get_float("high", 1);
    const DataType dtype = rewriter.from().type(node.output(0)).dtype;
    Builder& build = rewriter.build();
    ValueId drawn = draw(rewriter, node, key_of(node));
    if (wide_type(dtype) != dtype) {
      const double steps = dtype == DataType::kFloat16 ? 0x1p11 : 0x1p8;
      drawn = scaled(build, build.unary("Floor", scaled(build, drawn, steps)), 1 / steps);
    }
    finish(rewriter, node, drawn, high - low, low);
    return true;
  }

  // Box and Muller. 1 - draw is never 0.
  bool normal(Rewriter& rewriter, const Node& node) {
    Builder& build = rewriter.build();
    const ValueId one = build.scalar(DataType::kFloat32, 1);
    const ValueId first = draw(rewriter, node, key_of(node));
    const ValueId logarithm = build.unary("Log", build.binary("Sub", one, first));
    const ValueId radius = build.unary("Sqrt", scaled(build, logarithm, -2));
    const ValueId second = draw(rewriter, node, reference::second_stream(key_of(node)));
    const ValueId cosine = build.unary("Cos", scaled(build, second, 2 * std::numbers::pi));
    finish(rewriter, node, build.binary("Mul", radius, cosine),
           node.attributes.get_float("scale", 1), node.attributes.get_float("mean", 0));
    return true;
  }

  static ValueId scaled(Builder& build, ValueId x, double factor) {
    return build.binary("Mul", x, build.scalar_like(x, factor));
  }

  // The node's result is factor * x + offset.
  static void finish(Rewriter& rewriter, const Node& node, ValueId x, double factor,
                     double offset) {
    Builder& build = rewriter.build();
    if (factor != 1) x = scaled(build, x, factor);
    if (offset != 0) x = build.binary("Add", x, build.scalar_like(x, offset));
    const ValueId result = node.output(0);
    rewriter.map(
        result, build.cast(x, rewriter.from().type(result).dtype, rewriter.from().name_of(result)));
  }

  const DrawOptions& options_;
  ValueId step_;
};

}  // namespace

Graph decompose_random(const Graph& graph, const DrawOptions& options) {
  RandomLowering lowering(options);
  return rewrite_nodes(
      graph, [&](Rewriter& rewriter, const Node& node) { return lowering.lower(rewriter, node); });
}

Graph decompose_random(const Graph& graph) { return decompose_random(graph, {}); }

std::optional<ValueId> find_step_input(const Graph& graph) {
  for (const Node& node : graph.nodes()) {
    if (const ValueId step = ir::step_operand(node)) return step;
  }
  return std::nullopt;
}

}  // namespace autosp::transforms
