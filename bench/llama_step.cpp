#include "llama_step.h"

#include <cmath>
#include <string>
#include <vector>

#include "ir/builder.h"

namespace autosp::bench {

namespace {

using ir::DataType;
using ir::Shape;

constexpr double kEpsilon = 1e-5;
constexpr double kRotaryBase = 10000.0;

class LlamaStep {
 public:
  explicit LlamaStep(const LlamaSizes& sizes) : sizes_(sizes), build_(graph_) {}

  ir::Graph make() {
    graph_.name = "llama_step";
    ids_ = graph_.add_input("input_ids", {DataType::kInt64, {sizes_.batch, sizes_.sequence}});
    labels_ = graph_.add_input("labels", {DataType::kInt64, {sizes_.batch, sizes_.sequence}});
    make_positions();
    const ValueId table = parameter("embed", {sizes_.vocabulary, sizes_.hidden});
    ValueId x = build_.gather(table, ids_, 0, "embedded");
    std::vector<Layer> layers(static_cast<size_t>(sizes_.layers));
    for (size_t k = 0; k < layers.size(); ++k)
      x = forward(layers[k], "layer" + std::to_string(k), x);
    Norm last;
    const ValueId normed = norm(last, "norm", x);
    const ValueId head = parameter("head", {sizes_.hidden, sizes_.vocabulary});
    ValueId dx = norm_backward(last, loss_backward(normed, head));
    for (size_t k = layers.size(); k-- > 0;) dx = backward(layers[k], dx);
    const ValueId zeros = build_.zeros(graph_.type(table));
    gradient("embed", build_.scatter_nd(zeros, build_.unsqueeze(ids_, {-1}), dx, "add"));
    return std::move(graph_);
  }

 private:
  struct Norm {
    std::string name;
    ValueId weight, normal, inverse;
  };
  struct Linear {
    std::string name;
    ValueId weight, input;
  };
  struct Layer {
    std::string name;
    Norm before_attention, before_mlp;
    Linear q, k, v, o, gate, up, down;
    ValueId queries, keys, values, scores, gate_value, up_value, sigmoid, silu;
  };

  ValueId parameter(const std::string& name, Shape shape) {
    return graph_.add_input(name, {DataType::kFloat32, std::move(shape)});
  }
  void gradient(const std::string& name, ValueId value) {
    graph_.add_output(name + ".grad", value);
  }
  ValueId times(ValueId a, ValueId b) { return build_.binary("Mul", a, b); }
  ValueId plus(ValueId a, ValueId b) { return build_.binary("Add", a, b); }
  ValueId scaled(ValueId a, double factor) { return times(a, build_.scalar_like(a, factor)); }
  ValueId mean_last(ValueId x) {
    return scaled(build_.reduce_sum(x, {-1}, true),
                  1.0 / static_cast<double>(build_.shape(x).back()));
  }

  // cos, sin [1, 1, S, d] and the causal mask [S, S].
  void make_positions() {
    const ValueId range =
        build_.node("Range",
                    {build_.scalar(DataType::kInt64, 0),
                     build_.scalar(DataType::kInt64, static_cast<double>(sizes_.sequence)),
                     build_.scalar(DataType::kInt64, 1)},
                    ir::Type{DataType::kInt64, {sizes_.sequence}});
    mask_ =
        build_.binary("GreaterOrEqual", build_.unsqueeze(range, {1}), build_.unsqueeze(range, {0}));
    const int64_t half = sizes_.head_dim() / 2;
    ir::Tensor frequencies({DataType::kFloat32, {1, half}});
    for (int64_t k = 0; k < half; ++k) {
      frequencies.mutable_values<float>()[static_cast<size_t>(k)] = static_cast<float>(
          std::pow(kRotaryBase, -static_cast<double>(k) / static_cast<double>(half)));
    }
    const ValueId positions = build_.unsqueeze(build_.cast(range, DataType::kFloat32), {1});
    const ValueId angles = times(positions, build_.constant(frequencies, "frequencies"));
    const ValueId both = build_.unsqueeze(build_.concat({angles, angles}, 1), {0, 1});
    cos_ = build_.unary("Cos", both);
    sin_ = build_.unary("Sin", both);
  }

  ValueId norm(Norm& state, const std::string& name, ValueId x) {
    state.name = name;
    state.weight = parameter(name + ".weight", {sizes_.hidden});
    state.inverse = build_.unary(
        "Reciprocal", build_.unary("Sqrt", plus(mean_last(times(x, x)),
                                                build_.scalar(DataType::kFloat32, kEpsilon))));
    state.normal = times(x, state.inverse);
    return times(state.normal, state.weight);
  }

  ValueId norm_backward(const Norm& state, ValueId dy) {
    gradient(state.name + ".weight", build_.reduce_sum(times(dy, state.normal), {0, 1}, false));
    const ValueId dn = times(dy, state.weight);
    return times(state.inverse,
                 build_.binary("Sub", dn, times(state.normal, mean_last(times(dn, state.normal)))));
  }

  ValueId linear(Linear& state, const std::string& name, ValueId x, int64_t out) {
    state.name = name;
    state.input = x;
    state.weight = parameter(name + ".weight", {build_.shape(x).back(), out});
    return build_.matmul(x, state.weight);
  }

  ValueId linear_backward(const Linear& state, ValueId dy) {
    const int64_t tokens = sizes_.batch * sizes_.sequence;
    const ValueId x = build_.reshape(state.input, {tokens, build_.shape(state.input).back()});
    const ValueId dy2 = build_.reshape(dy, {tokens, build_.shape(dy).back()});
    gradient(state.name + ".weight", build_.matmul(build_.transpose(x, {1, 0}), dy2));
    return build_.matmul(dy, build_.transpose(state.weight, {1, 0}));
  }

  // [B, S, n d] -> [B, n, S, d] and back.
  ValueId split_heads(ValueId x, int64_t count) {
    return build_.transpose(
        build_.reshape(x, {sizes_.batch, sizes_.sequence, count, sizes_.head_dim()}), {0, 2, 1, 3});
  }
  ValueId merge_heads(ValueId x) {
    const int64_t count = build_.shape(x)[1];
    return build_.reshape(build_.transpose(x, {0, 2, 1, 3}),
                          {sizes_.batch, sizes_.sequence, count * sizes_.head_dim()});
  }

  // (a, b) -> (-b, a) along the last axis; its transpose is its negative.
  ValueId rotated(ValueId x) {
    const int64_t half = sizes_.head_dim() / 2;
    const ValueId a = build_.slice(x, -1, 0, half);
    const ValueId b = build_.slice(x, -1, half, 2 * half);
    return build_.concat({build_.unary("Neg", b), a}, -1);
  }
  ValueId rotary(ValueId x) { return plus(times(x, cos_), times(rotated(x), sin_)); }
  ValueId rotary_backward(ValueId dy) {
    return build_.binary("Sub", times(dy, cos_), rotated(times(dy, sin_)));
  }

  // KV heads repeated to the query heads, and the sum over the repetitions.
  ValueId repeated(ValueId x) {
    const int64_t groups = sizes_.heads / sizes_.kv_heads;
    const ValueId wide =
        build_.expand(build_.unsqueeze(x, {2}),
                      {sizes_.batch, sizes_.kv_heads, groups, sizes_.sequence, sizes_.head_dim()});
    return build_.reshape(wide, {sizes_.batch, sizes_.heads, sizes_.sequence, sizes_.head_dim()});
  }
  ValueId summed(ValueId dx) {
    const int64_t groups = sizes_.heads / sizes_.kv_heads;
    return build_.reduce_sum(build_.reshape(dx, {sizes_.batch, sizes_.kv_heads, groups,
                                                 sizes_.sequence, sizes_.head_dim()}),
                             {2}, false);
  }
  ValueId swapped(ValueId x) { return build_.transpose(x, {0, 1, 3, 2}); }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(sizes_.head_dim())); }

  ValueId forward(Layer& layer, const std::string& name, ValueId x) {
    layer.name = name;
    const int64_t kv_width = sizes_.kv_heads * sizes_.head_dim();
    const ValueId h = norm(layer.before_attention, name + ".norm1", x);
    layer.queries =
        rotary(split_heads(linear(layer.q, name + ".q", h, sizes_.hidden), sizes_.heads));
    layer.keys =
        repeated(rotary(split_heads(linear(layer.k, name + ".k", h, kv_width), sizes_.kv_heads)));
    layer.values =
        repeated(split_heads(linear(layer.v, name + ".v", h, kv_width), sizes_.kv_heads));
    const ValueId products = scaled(build_.matmul(layer.queries, swapped(layer.keys)), scale());
    const ValueId masked = build_.where(mask_, products, build_.scalar(DataType::kFloat32, -1e30));
    layer.scores = build_.softmax("Softmax", masked, -1);
    const ValueId attended = merge_heads(build_.matmul(layer.scores, layer.values));
    const ValueId x1 = plus(x, linear(layer.o, name + ".o", attended, sizes_.hidden));
    const ValueId h2 = norm(layer.before_mlp, name + ".norm2", x1);
    layer.gate_value = linear(layer.gate, name + ".gate", h2, sizes_.inner);
    layer.up_value = linear(layer.up, name + ".up", h2, sizes_.inner);
    layer.sigmoid = build_.unary("Sigmoid", layer.gate_value);
    layer.silu = times(layer.gate_value, layer.sigmoid);
    return plus(
        x1, linear(layer.down, name + ".down", times(layer.silu, layer.up_value), sizes_.hidden));
  }

  ValueId backward(const Layer& layer, ValueId dx2) {
    const ValueId dinner = linear_backward(layer.down, dx2);
    const ValueId dup = times(dinner, layer.silu);
    // d silu(g) / dg = s + g s (1 - s)
    const ValueId one = build_.scalar(DataType::kFloat32, 1);
    const ValueId slope =
        plus(layer.sigmoid, times(layer.silu, build_.binary("Sub", one, layer.sigmoid)));
    const ValueId dgate = times(times(dinner, layer.up_value), slope);
    const ValueId dh2 = plus(linear_backward(layer.gate, dgate), linear_backward(layer.up, dup));
    const ValueId dx1 = plus(dx2, norm_backward(layer.before_mlp, dh2));
    const ValueId dattended = split_heads(linear_backward(layer.o, dx1), sizes_.heads);
    const ValueId dvalues = build_.matmul(swapped(layer.scores), dattended);
    const ValueId dscores = build_.matmul(dattended, swapped(layer.values));
    const ValueId weighted = times(dscores, layer.scores);
    const ValueId dproducts =
        scaled(build_.binary("Sub", weighted,
                             times(layer.scores, build_.reduce_sum(weighted, {-1}, true))),
               scale());
    const ValueId dqueries = rotary_backward(build_.matmul(dproducts, layer.keys));
    const ValueId dkeys = rotary_backward(summed(build_.matmul(swapped(dproducts), layer.queries)));
    const ValueId dq = linear_backward(layer.q, merge_heads(dqueries));
    const ValueId dk = linear_backward(layer.k, merge_heads(dkeys));
    const ValueId dv = linear_backward(layer.v, merge_heads(summed(dvalues)));
    return plus(dx1, norm_backward(layer.before_attention, build_.sum({dq, dk, dv})));
  }

  // The mean over valid tokens; returns the gradient of its operand.
  ValueId loss_backward(ValueId x, ValueId head) {
    const ValueId logits = build_.matmul(x, head);
    const ValueId valid =
        build_.unary("Not", build_.binary("Equal", labels_, build_.scalar(DataType::kInt64, -100)));
    const ValueId safe =
        build_.unsqueeze(build_.where(valid, labels_, build_.scalar(DataType::kInt64, 0)), {2});
    const ValueId count = build_.reduce_sum(build_.cast(valid, DataType::kFloat32), {0, 1}, false);
    const ValueId log_probability = build_.softmax("LogSoftmax", logits, -1);
    const ValueId picked = build_.squeeze(build_.gather_elements(log_probability, safe, 2), {2});
    const ValueId zero = build_.scalar(DataType::kFloat32, 0);
    const ValueId total =
        build_.reduce_sum(build_.where(valid, build_.unary("Neg", picked), zero), {0, 1}, false);
    graph_.add_output("loss", build_.binary("Div", total, count, "loss"));
    const ValueId share = build_.binary("Div", build_.scalar(DataType::kFloat32, 1), count);
    const ValueId weight = build_.unsqueeze(build_.where(valid, share, zero), {2});
    const ValueId zeros = build_.zeros(graph_.type(logits));
    const ValueId one_hot = build_.scatter_elements(
        zeros, safe,
        build_.expand(build_.scalar(DataType::kFloat32, 1), {sizes_.batch, sizes_.sequence, 1}), 2,
        "none");
    const ValueId dlogits =
        times(build_.binary("Sub", build_.unary("Exp", log_probability), one_hot), weight);
    const int64_t tokens = sizes_.batch * sizes_.sequence;
    gradient("head",
             build_.matmul(build_.transpose(build_.reshape(x, {tokens, sizes_.hidden}), {1, 0}),
                           build_.reshape(dlogits, {tokens, sizes_.vocabulary})));
    return build_.matmul(dlogits, build_.transpose(head, {1, 0}));
  }

  LlamaSizes sizes_;
  ir::Graph graph_;
  ir::Builder build_;
  ValueId ids_, labels_, mask_, cos_, sin_;
};

}  // namespace

ir::Graph llama_step(const LlamaSizes& sizes) { return LlamaStep(sizes).make(); }

}  // namespace autosp::bench
