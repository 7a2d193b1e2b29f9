#include "ring_layer.h"

#include <limits>

#include "ir/builder.h"
#include "reference/attention_problem.h"

namespace autosp::transforms::ring_layer {

namespace {

using ir::DataType;
using ir::Graph;
using ir::Shape;

class Layer {
 public:
  explicit Layer(const Options& options)
      : options_(options), heads_(options.kv_heads * options.group) {}

  Graph build() && {
    const int64_t s = options_.sequence;
    const ValueId x = input("x", {kBatch, s, kHidden});
    const ValueId t = input("t", {kBatch, s, heads_ * kWidth});
    const ValueId wq = input("wq", {kHidden, heads_ * kWidth});
    const ValueId wk = input("wk", {kHidden, options_.kv_heads * kWidth});
    const ValueId wv = input("wv", {kHidden, options_.kv_heads * kWidth});
    const std::vector<ValueId> qkv = {heads(x, wq), heads(x, wk), heads(x, wv)};
    const std::vector<ValueId> masks = make_masks();
    const Shape rows = {kBatch, heads_, s};
    const Shape wide = {kBatch, heads_, s, kWidth};
    const DataType statistic =
        options_.dtype == DataType::kFloat64 ? DataType::kFloat64 : DataType::kFloat32;
    const ir::Type row_type{statistic, rows};
    const auto forward = fused("Attention", qkv, masks, {type(wide), row_type, row_type});
    const ValueId product = build_.cast(build_.binary("Mul", join(forward[0]), t), statistic);
    graph_.add_output("loss", build_.reduce_sum(product, {0, 1, 2}, false));

    std::vector<ValueId> operands = {split(t)};
    operands.insert(operands.end(), qkv.begin(), qkv.end());
    operands.insert(operands.end(), forward.begin(), forward.end());
    const Shape narrow = {kBatch, options_.kv_heads, s, kWidth};
    std::vector<ir::Type> types = {type(wide), type(narrow), type(narrow)};
    if (options_.sink) {
      types.emplace_back();
      types.push_back(type({heads_}));
    }
    const auto gradients = fused("AttentionGrad", operands, masks, types);
    weight_gradient("wq_grad", x, gradients[0]);
    weight_gradient("wk_grad", x, gradients[1]);
    weight_gradient("wv_grad", x, gradients[2]);
    if (options_.sink) graph_.add_output("sink_grad", gradients[4]);
    return std::move(graph_);
  }

 private:
  ir::Type type(Shape shape) const { return {options_.dtype, std::move(shape)}; }
  ValueId input(const std::string& name, Shape shape) {
    return graph_.add_input(name, type(std::move(shape)));
  }
  // [batch, sequence, heads * width] -> [batch, heads, sequence, width]
  ValueId split(ValueId x) {
    const Shape shape = graph_.shape(x);
    const ValueId parts = build_.reshape(x, {shape[0], shape[1], shape[2] / kWidth, kWidth});
    return build_.transpose(parts, {0, 2, 1, 3});
  }
  ValueId heads(ValueId x, ValueId w) { return split(build_.matmul(x, w)); }
  ValueId join(ValueId x) {
    const Shape shape = graph_.shape(x);
    return build_.reshape(build_.transpose(x, {0, 2, 1, 3}),
                          {shape[0], shape[2], shape[1] * shape[3]});
  }
  // bias, begin, end, key mask, query and key segment, sink
  std::vector<ValueId> make_masks() {
    const int64_t s = options_.sequence;
    std::vector<ValueId> masks(7);
    if (options_.key_bias) masks[0] = input("bias", {1, heads_, 1, s});
    if (options_.full_bias) masks[0] = input("bias", {kBatch, 1, s, s});
    if (options_.window > 0) masks[1] = bound([&](int64_t i) { return i + 1 - options_.window; });
    if (options_.run_time_begin)
      masks[1] = graph_.add_input("begins", {DataType::kInt64, {kBatch, s}});
    if (options_.causal) masks[2] = bound([](int64_t i) { return i + 1; });
    if (options_.run_time_end) masks[2] = graph_.add_input("ends", {DataType::kInt64, {kBatch, s}});
    if (options_.key_mask) masks[3] = graph_.add_input("mask", {DataType::kBool, {kBatch, s}});
    if (options_.segments) {
      masks[4] = graph_.add_input("segments", {DataType::kInt64, {kBatch, s}});
      masks[5] = masks[4];
    }
    if (options_.sink) masks[6] = input("sink", {heads_});
    return masks;
  }
  template <typename Of>
  ValueId bound(const Of& of) {
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < options_.sequence; ++i)
      positions.push_back(std::max<int64_t>(0, of(i)));
    return build_.constant(ir::Tensor::int64s(positions).reshaped({1, options_.sequence}));
  }
  std::vector<ValueId> fused(const std::string& op, std::vector<ValueId> operands,
                             const std::vector<ValueId>& masks,
                             const std::vector<ir::Type>& types) {
    operands.insert(operands.end(), masks.begin(), masks.end());
    while (!operands.back()) operands.pop_back();
    ir::Attributes attributes{{"scale", 0.6F}, {"dead_rows", std::string(options_.dead_rows)}};
    if (options_.dead_row_gradient) attributes.set("dead_row_gradient", int64_t{1});
    if (options_.softcap != 0) attributes.set("softcap", options_.softcap);
    if (options_.dropout) drop_weights(attributes);
    return build_.node(op, std::move(operands), types, std::move(attributes),
                       std::string(ir::kAutospDomain));
  }
  void drop_weights(ir::Attributes& attributes) const {
    const int64_t s = options_.sequence;
    reference::set_attention_dropout(
        attributes, {.key = {3, 4},
                     .strides = {heads_ * s * s, options_.group * s * s, s * s, s, 1},
                     .from = 0.25F,
                     .scale = 1 / 0.75F});
  }
  void weight_gradient(const std::string& name, ValueId x, ValueId gradient) {
    const ValueId g = join(gradient);
    const ValueId rows = build_.reshape(x, {kBatch * options_.sequence, kHidden});
    const ValueId columns = build_.reshape(g, {kBatch * options_.sequence, graph_.shape(g)[2]});
    graph_.add_output(name, build_.matmul(build_.transpose(rows, {1, 0}), columns));
  }

  const Options& options_;
  Graph graph_;
  ir::Builder build_{graph_};
  int64_t heads_;
};

}  // namespace

Graph build_layer(const Options& options) { return Layer(options).build(); }

shard::Roles roles_of(const Graph& graph) {
  shard::RoleOptions options{.sequence = {"x:1", "t:1"}, .batch = {"x:0", "t:0"}, .loss = "loss"};
  for (const char* name : {"wq", "wk", "wv", "sink"}) {
    if (graph.find(name)) options.gradients[name] = std::string(name) + "_grad";
  }
  return shard::detect_roles(graph, options);
}

test::Tensors feeds_of(const Graph& graph, const Options& options) {
  test::Tensors feeds = test::random_feeds(graph, {.num_tokens = 2});
  const int64_t s = options.sequence;
  if (options.run_time_begin) {
    auto begins = feeds.at("begins").mutable_values<int64_t>();
    for (int64_t k = 0; k < kBatch * s; ++k)
      begins[static_cast<size_t>(k)] = 5 * k % s * (k % s) / s;
  }
  if (options.run_time_end) {
    auto ends = feeds.at("ends").mutable_values<int64_t>();
    for (int64_t k = 0; k < kBatch * s; ++k) ends[static_cast<size_t>(k)] = 1 + (7 * k) % s;
  }
  if (options.full_bias) {
    auto bias = feeds.at("bias").mutable_values<float>();
    for (int64_t k = 0; k < kBatch * s * s; ++k) {
      const int64_t query = k / s % s;
      if ((k % s + query) % s > s / 3)
        bias[static_cast<size_t>(k)] = -std::numeric_limits<float>::infinity();
    }
  }
  if (options.key_mask) {
    auto mask = feeds.at("mask").mutable_values<bool>();
    for (int64_t k = 0; k < kBatch * s; ++k) {
      const bool dead = std::string_view(options.dead_rows) != "none" && !options.sink &&
                        k % s < 6;  // causal rows before see no key
      mask[static_cast<size_t>(k)] = !dead && (k % s < 2 || k % 3 == 0);
    }
  }
  return feeds;
}

}  // namespace autosp::transforms::ring_layer
