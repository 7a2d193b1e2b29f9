#include "support/attention_layers.h"

#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <vector>

#include "ir/builder.h"

namespace autosp::test {

namespace {

using ir::DataType;
using ir::Shape;
using ir::Tensor;
using ir::Type;

constexpr int64_t kHidden = 10;

class Layer {
 public:
  explicit Layer(const LayerOptions& options) : options_(options), build_(graph_) {
    const Shape tokens = {options.batch, options.sequence, kHidden};
    heads_ = options.kv_heads * options.groups;
    x_ = graph_.add_input("inputs_embeds", {options.dtype, tokens});
    wk_ = weight("wk", options.kv_heads);
    wq_ = options.query_is_key ? wk_ : weight("wq", heads_);
    wv_ = options.key_is_value ? wk_ : weight("wv", options.kv_heads);
    positions_ = build_.constant(Tensor::int64s([&] {
      std::vector<int64_t> all;
      for (int64_t k = 0; k < options.sequence; ++k) all.push_back(k);
      return all;
    }()));
  }

  ir::Graph make() {
    const ValueId k = repeated(heads_of(wk_, options_.kv_heads));
    const ValueId q = options_.query_is_key ? k : heads_of(wq_, heads_);
    const ValueId v = options_.key_is_value ? k : repeated(heads_of(wv_, options_.kv_heads));
    ValueId s = build_.matmul(q, transposed(k));
    if (!options_.scaled_last) s = build_.binary("Mul", s, number(scale()));
    s = heated(s);
    ValueId bend;
    if (options_.softcap != 0) {
      const ValueId cap = number(options_.softcap);
      bend = build_.unary("Tanh", build_.binary("Div", s, cap));
      s = build_.binary("Mul", bend, cap);
    }
    if (options_.clipped_scores) {
      s = build_.node("Clip", {s, number(-1), number(1)}, graph_.type(s));
    }
    if (options_.mixes_heads) s = mixed(s);
    if (options_.pair_bias) s = build_.binary("Add", s, bias_of_pairs());
    s = masked(s);
    if (options_.scaled_last) s = build_.binary("Div", s, number(1 / scale()));
    ValueId p = options_.sigmoid ? build_.unary("Sigmoid", s) : weights_of(s);
    if (options_.mask == LayerMask::kZeroDeadRows) p = without_dead_rows(p, s);
    if (guard_) p = without_dead_rows(p, guard_);
    const ValueId o = build_.matmul(dropped(of_rows(p), 1), v);
    const ValueId weights =
        build_.cast(build_.constant(pattern(graph_.shape(o)), "target"), options_.dtype);
    const ValueId target = options_.squared_loss ? build_.binary("Add", o, o) : weights;
    ValueId loss = build_.reduce_sum(build_.binary("Mul", o, options_.squared_loss ? o : weights),
                                     {0, 1, 2, 3}, false, "loss");
    if (options_.weights_in_loss) {
      const ValueId squares = build_.binary("Mul", p, p);
      loss = build_.binary("Add", loss, build_.reduce_sum(squares, {0, 1, 2, 3}, false));
    }
    backward(q, k, v, s, p, bend, target);
    graph_.add_output("loss", loss);
    if (options_.weights_are_output) graph_.add_output("weights", p);
    if (options_.query_is_key) {
      dk_ = build_.binary("Add", dk_, dq_);
    } else {
      output_gradient("wq", dq_, heads_);
    }
    if (options_.key_is_value) {
      output_gradient("wk", build_.binary("Add", dk_, dv_), options_.kv_heads);
    } else {
      output_gradient("wk", dk_, options_.kv_heads);
      output_gradient("wv", dv_, options_.kv_heads);
    }
    return std::move(graph_);
  }

 private:
  double scale() const { return 1 / std::sqrt(static_cast<double>(options_.width)); }
  ValueId number(double value) { return build_.scalar(options_.dtype, value); }

  double lowest() const {
    switch (options_.dtype) {
      case DataType::kFloat16:
        return -65504;
      case DataType::kBFloat16:
        return -3.3895313892515355e38;
      case DataType::kFloat64:
        return std::numeric_limits<double>::lowest();
      default:
        return std::numeric_limits<float>::lowest();
    }
  }

  ValueId weights_of(ValueId s) {
    if (options_.one_more == LayerOneMore::kAdded) {
      const ValueId e = build_.unary("Exp", s);
      const ValueId sum = build_.reduce_sum(e, {3}, true);
      return build_.binary("Div", e, build_.binary("Add", sum, number(1)));
    }
    if (options_.one_more == LayerOneMore::kPadded) {
      const ValueId wide = build_.pad(s, {0, 0, 0, 1}, {0, 0, 0, 0});
      const ValueId p = build_.softmax("Softmax", wide, 3);
      return build_.slice(p, 3, 1, options_.sequence + 1);
    }
    if (!options_.sink) {
      return build_.softmax("Softmax", s, options_.softmax_over_queries ? 2 : 3);
    }
    Shape column = graph_.shape(s);
    column[3] = 1;
    const ValueId sink = graph_.add_input("sink", {options_.dtype, {1, heads_, 1, 1}});
    const ValueId wide = build_.concat({s, build_.expand(sink, column)}, 3);
    return build_.slice(build_.softmax("Softmax", wide, 3), 3, 0, options_.sequence);
  }

  ValueId weight(const std::string& name, int64_t heads) {
    return graph_.add_input(name, {options_.dtype, {kHidden, heads * options_.width}});
  }

  // Fixed numbers, none like another.
  static Tensor pattern(const Shape& shape) {
    Tensor tensor(Type{DataType::kFloat32, shape});
    float next = 0.3F;
    for (float& value : tensor.mutable_values<float>()) {
      next = std::fmod(next * 1.7F + 0.37F, 1.0F);
      value = next - 0.5F;
    }
    return tensor;
  }

  ValueId transposed(ValueId x) { return build_.transpose(x, {0, 1, 3, 2}); }

  // [batch, heads, sequence, width]
  ValueId heads_of(ValueId w, int64_t heads) {
    const ValueId flat = build_.matmul(x_, w);
    const ValueId split =
        build_.reshape(flat, {options_.batch, options_.sequence, heads, options_.width});
    return build_.transpose(split, {0, 2, 1, 3});
  }

  ValueId repeated(ValueId x) {
    if (options_.groups == 1) return x;
    Shape shape = graph_.shape(x);
    const ValueId apart = build_.unsqueeze(x, {2});
    Shape wide = graph_.shape(apart);
    wide[2] = options_.groups;
    shape[1] = heads_;
    return build_.reshape(build_.expand(apart, wide), shape);
  }

  ValueId summed(ValueId x) {
    if (options_.groups == 1) return x;
    const Shape shape = graph_.shape(x);
    const ValueId apart =
        build_.reshape(x, {shape[0], options_.kv_heads, options_.groups, shape[2], shape[3]});
    return build_.reduce_sum(apart, {2}, false);
  }

  // [batch, heads, sequence, sequence] with the heads last, and back.
  ValueId heads_last(ValueId s) { return build_.transpose(s, {0, 2, 3, 1}); }
  ValueId heads_second(ValueId s) { return build_.transpose(s, {0, 3, 1, 2}); }

  // The rows of a linear layer over pairs.
  ValueId rows_of_pairs(ValueId pairs) {
    const int64_t n = options_.sequence;
    return build_.reshape(pairs, {options_.batch * n * n, graph_.shape(pairs)[3]});
  }

  ValueId mixed(ValueId s) {
    mixture_ = graph_.add_input("mixture", {options_.dtype, {heads_, heads_}});
    unmixed_ = heads_last(s);
    return heads_second(build_.matmul(unmixed_, mixture_));
  }

  ValueId mixed_gradient(ValueId ds) {
    if (!mixture_) return ds;
    const ValueId last = heads_last(ds);
    const ValueId rows = build_.transpose(rows_of_pairs(unmixed_), {1, 0});
    graph_.add_output("mixture.grad", build_.matmul(rows, rows_of_pairs(last), "mixture.grad"));
    return heads_second(build_.matmul(last, build_.transpose(mixture_, {1, 0})));
  }

  ValueId bias_of_pairs() {
    constexpr int64_t kWidth = 3;
    const int64_t n = options_.sequence;
    const ValueId w = graph_.add_input("pair", {options_.dtype, {kHidden, 2 * kWidth}});
    tokens_ = build_.reshape(build_.matmul(x_, w), {options_.batch, n * kWidth, 2});
    const ValueId products = build_.matmul(tokens_, build_.transpose(tokens_, {0, 2, 1}));
    const ValueId apart = build_.reshape(products, {options_.batch, n, kWidth, n, kWidth});
    pairs_ = build_.reshape(build_.transpose(apart, {0, 1, 3, 2, 4}),
                            {options_.batch, n, n, kWidth * kWidth});
    const int64_t heads = options_.shared_bias ? options_.kv_heads : heads_;
    pair_weight_ = graph_.add_input("bias", {options_.dtype, {kWidth * kWidth, heads}});
    added_ = graph_.add_input("added", {options_.dtype, {heads}});
    const ValueId bias =
        heads_second(build_.binary("Add", build_.matmul(pairs_, pair_weight_), added_));
    return options_.shared_bias ? repeated(bias) : bias;
  }

  // Of the linear layer's weights, and of what the tokens are multiplied by.
  void output_bias_gradients(ValueId ds) {
    if (!pairs_) return;
    constexpr int64_t kWidth = 3;
    const int64_t n = options_.sequence;
    const ValueId rows = rows_of_pairs(heads_last(options_.shared_bias ? summed(ds) : ds));
    const ValueId pairs = build_.transpose(rows_of_pairs(pairs_), {1, 0});
    graph_.add_output("bias.grad", build_.matmul(pairs, rows, "bias.grad"));
    // Zero but for rounding, as it is constant along keys: so its decay is added.
    const ValueId sum = build_.reduce_sum(rows, {0}, false);
    graph_.add_output("added.grad", build_.binary("Add", sum, added_, "added.grad"));
    const ValueId of_pairs = build_.matmul(rows, build_.transpose(pair_weight_, {1, 0}));
    const ValueId apart = build_.reshape(of_pairs, {options_.batch, n, n, kWidth, kWidth});
    const ValueId products = build_.reshape(build_.transpose(apart, {0, 1, 3, 2, 4}),
                                            {options_.batch, n * kWidth, n * kWidth});
    const ValueId of_tokens =
        build_.reshape(build_.matmul(products, tokens_), {options_.batch * n, 2 * kWidth});
    const ValueId tokens = build_.reshape(x_, {options_.batch * n, kHidden});
    graph_.add_output("pair.grad",
                      build_.matmul(build_.transpose(tokens, {1, 0}), of_tokens, "pair.grad"));
  }

  ValueId column(ValueId vector) { return build_.unsqueeze(vector, {1}); }

  ValueId causal() {
    return build_.binary("LessOrEqual", build_.unsqueeze(positions_, {0}), column(positions_));
  }

  ValueId data(const std::string& name, DataType dtype) {
    return graph_.add_input(name, {dtype, {options_.batch, options_.sequence}});
  }

  // [batch, 1, sequence, 1] and [batch, 1, 1, sequence].
  ValueId over_queries(ValueId x) { return build_.unsqueeze(x, {1, 3}); }
  ValueId over_keys(ValueId x) { return build_.unsqueeze(x, {1, 2}); }

  ValueId added(ValueId s, ValueId seen, double number_where_not) {
    if (options_.subtracted) {
      const ValueId taken = build_.cast(build_.unary("Not", seen), options_.dtype);
      return build_.binary("Sub", s, build_.binary("Mul", number(-number_where_not), taken));
    }
    const ValueId bias = build_.where(seen, number(0), number(number_where_not));
    return build_.binary("Add", s, bias);
  }

  ValueId masked(ValueId s) {
    const double hidden = lowest();
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    switch (options_.mask) {
      case LayerMask::kNone:
        return s;
      case LayerMask::kCausal:
        seen_ = causal();
        return build_.where(seen_, s, number(hidden));
      case LayerMask::kWindow: {
        const ValueId distance =
            build_.binary("Sub", column(positions_), build_.unsqueeze(positions_, {0}));
        const ValueId near = build_.binary("Less", distance, build_.scalar(DataType::kInt64, 3));
        return added(s, build_.binary("And", causal(), near), -kInfinity);
      }
      case LayerMask::kBand: {
        const ValueId difference =
            build_.binary("Sub", build_.unsqueeze(positions_, {0}), column(positions_));
        const ValueId distance = build_.unary("Abs", difference);
        const ValueId far = build_.binary("Less", build_.scalar(DataType::kInt64, 2), distance);
        const ValueId valid = over_keys(data("attention_mask", DataType::kBool));
        return added(s, build_.binary("And", build_.unary("Not", far), valid), hidden);
      }
      case LayerMask::kLeftPadding: {
        const ValueId valid = over_keys(data("attention_mask", DataType::kBool));
        return added(s, build_.binary("And", causal(), valid),
                     options_.masking_number.value_or(hidden));
      }
      case LayerMask::kSegments: {
        const ValueId same = equal_pairs("segment_ids");
        seen_ = build_.binary("And", causal(), same);
        return build_.where(seen_, s, number(-kInfinity));
      }
      case LayerMask::kZeroDeadRows:
        seen_ = over_keys(data("attention_mask", DataType::kBool));
        return build_.where(seen_, s, number(-kInfinity));
      case LayerMask::kDistances: {
        std::vector<float> slopes;
        for (int64_t h = 0; h < heads_; ++h) slopes.push_back(0.5F / static_cast<float>(h + 1));
        const ValueId slope =
            build_.constant(Tensor::from_values<float>({heads_, 1, 1}, slopes), "slopes");
        const ValueId distance =
            build_.binary("Sub", build_.unsqueeze(positions_, {0}), column(positions_));
        const ValueId bias = build_.binary("Mul", build_.cast(slope, options_.dtype),
                                           build_.cast(distance, options_.dtype));
        return added(build_.binary("Add", s, bias), causal(), -kInfinity);
      }
      case LayerMask::kGuarded:
      case LayerMask::kHalfGuarded: {
        const ValueId valid = over_keys(data("attention_mask", DataType::kBool));
        const ValueId of_keys = build_.where(valid, number(0), number(-kInfinity));
        const ValueId all = added(of_keys, causal(), -kInfinity);
        guard_ = options_.mask == LayerMask::kGuarded ? all : of_keys;
        return build_.binary("Add", s, all);
      }
      case LayerMask::kPositions: {
        const ValueId last = over_queries(data("position_ids", DataType::kInt64));
        seen_ = build_.binary("LessOrEqual", positions_, last);
        return build_.where(seen_, s, number(hidden));
      }
      default:
        return masked_by_inputs(s);
    }
  }

  ValueId masked_by_inputs(ValueId s) {
    const double hidden = lowest();
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    switch (options_.mask) {
      case LayerMask::kTwoSums: {
        const ValueId valid = over_keys(data("attention_mask", DataType::kBool));
        const ValueId of_keys = build_.where(valid, number(0), number(-1e9));
        return build_.binary("Add", s, added(of_keys, causal(), -1e9));
      }
      case LayerMask::kGuardedBias: {
        guard_ = added(over_keys(data("key_bias", options_.dtype)), causal(), -kInfinity);
        return build_.binary("Add", s, guard_);
      }
      case LayerMask::kPadding: {
        const ValueId valid = over_keys(data("attention_mask", DataType::kBool));
        seen_ = causal();
        return build_.where(seen_, added(s, valid, hidden), number(hidden));
      }
      case LayerMask::kProducts: {
        const ValueId valid = data("attention_mask", DataType::kInt64);
        const ValueId pairs = build_.binary("Mul", over_queries(valid), over_keys(valid));
        seen_ = build_.cast(pairs, DataType::kBool);
        return build_.where(seen_, s, number(hidden));
      }
      case LayerMask::kTwoSegments: {
        const ValueId same = equal_pairs("segment_ids");
        return added(s, build_.binary("And", same, equal_pairs("token_type_ids")), hidden);
      }
      case LayerMask::kPairs:
        return build_.where(pairs(), s, number(hidden));
      case LayerMask::kPairsCausal:
        return build_.where(causal(), build_.where(pairs(), s, number(hidden)), number(hidden));
      case LayerMask::kKeysOfOne: {
        const ValueId ids = over_keys(data("segment_ids", options_.id_dtype));
        const Shape full = {options_.batch, 1, options_.sequence, options_.sequence};
        seen_ = build_.binary("Equal", build_.expand(ids, full), build_.scalar_like(ids, 1));
        return build_.where(seen_, s, number(hidden));
      }
      case LayerMask::kRepeatedKeys: {
        const ValueId valid = over_keys(data("attention_mask", DataType::kBool));
        const ValueId of_keys = build_.where(valid, number(0), number(-kInfinity));
        const Shape repeated = {options_.batch, heads_, 1, options_.sequence};
        return build_.binary("Add", s,
                             added(build_.expand(of_keys, repeated), causal(), -kInfinity));
      }
      case LayerMask::kKeysOfHeads: {
        const Shape shape = {options_.batch, heads_, 1, options_.sequence};
        const ValueId valid = graph_.add_input("attention_mask", {DataType::kBool, shape});
        const ValueId of_keys = build_.where(valid, number(0), number(-kInfinity));
        return build_.binary("Add", s, added(of_keys, causal(), -kInfinity));
      }
      case LayerMask::kPrefix: {
        const ValueId prefix =
            graph_.add_input("prefix", {DataType::kInt64, {options_.batch, 1, 1, 1}});
        seen_ = build_.binary("Or", causal(), build_.binary("Less", positions_, prefix));
        return build_.where(seen_, s, number(hidden));
      }
      case LayerMask::kBatchBits: {
        const ValueId bits =
            graph_.add_input("attention_mask", {DataType::kBool, {options_.batch, 1}});
        return added(s, build_.binary("And", causal(), build_.unsqueeze(bits, {1, 2})), hidden);
      }
      case LayerMask::kWrapped: {
        const ValueId ids = data("segment_ids", options_.id_dtype);
        const ValueId scaled = build_.binary("Mul", ids, build_.scalar_like(ids, 128));
        const Shape full = {options_.batch, 1, options_.sequence, options_.sequence};
        const auto bytes = [&](ValueId x) {
          return build_.cast(build_.expand(x, full), DataType::kUInt8);
        };
        seen_ = build_.binary("Equal", bytes(over_queries(scaled)), bytes(over_keys(scaled)));
        return build_.where(seen_, s, number(hidden));
      }
      case LayerMask::kUnion: {
        const ValueId near = build_.binary("Less", distances(), build_.scalar(DataType::kInt64, 3));
        const ValueId first = build_.binary("Less", positions_, build_.scalar(DataType::kInt64, 2));
        seen_ = build_.binary("And", causal(), build_.binary("Or", near, first));
        return build_.where(seen_, s, number(-kInfinity));
      }
      case LayerMask::kStrided:
        seen_ = build_.binary("And", causal(), every_third());
        return build_.where(seen_, s, number(hidden));
      case LayerMask::kStridedBefore: {
        const ValueId before =
            build_.binary("Less", build_.unsqueeze(positions_, {0}), column(positions_));
        seen_ = build_.binary("And", before, every_third());
        return build_.where(seen_, s, number(hidden));
      }
      case LayerMask::kHiddenFloats:
      case LayerMask::kStridedFloats: {
        const ValueId valid = over_keys(data("key_mask", options_.dtype));
        const ValueId bias =
            build_.binary("Mul", build_.binary("Sub", number(1), valid), number(-1e9));
        seen_ = causal();
        if (options_.mask == LayerMask::kStridedFloats) {
          seen_ = build_.binary("And", seen_, every_third());
        }
        return build_.where(seen_, build_.binary("Add", s, bias), number(-1e9));
      }
      case LayerMask::kTimes: {
        const ValueId times = data("position_ids", DataType::kInt64);
        const ValueId no_later =
            build_.binary("GreaterOrEqual", over_queries(times), over_keys(times));
        seen_ = build_.binary("And", equal_pairs("segment_ids"), no_later);
        return build_.where(seen_, s, number(hidden));
      }
      case LayerMask::kTruncated: {
        std::vector<float> halves;
        for (int64_t i = 0; i < options_.sequence; ++i) {
          halves.push_back(static_cast<float>(i) / 2);
        }
        const ValueId first =
            build_.constant(Tensor::from_values<float>({options_.sequence, 1}, halves), "halves");
        const Shape full = {options_.sequence, options_.sequence};
        const ValueId whole = build_.cast(build_.expand(first, full), DataType::kInt64);
        return added(s, build_.binary("GreaterOrEqual", positions_, whole), hidden);
      }
      default:
        return s;
    }
  }

  // i - j of query i and key j.
  ValueId distances() {
    return build_.binary("Sub", column(positions_), build_.unsqueeze(positions_, {0}));
  }

  // Whether query i and key j are a multiple of three apart.
  ValueId every_third() {
    const ValueId rest = build_.binary("Mod", distances(), build_.scalar(DataType::kInt64, 3));
    return build_.binary("Equal", rest, build_.scalar(DataType::kInt64, 0));
  }

  ValueId equal_pairs(const std::string& name) {
    const ValueId ids = data(name, options_.id_dtype);
    return build_.binary("Equal", over_queries(ids), over_keys(ids));
  }

  ValueId pairs() {
    const Shape shape = {options_.batch, options_.sequence, options_.sequence};
    return build_.unsqueeze(graph_.add_input("attention_mask", {DataType::kBool, shape}), {1});
  }

  ValueId heated(ValueId s) {
    if (options_.temperature == LayerTemperature::kNone) return s;
    const int64_t keys = options_.temperature == LayerTemperature::kOfKeys ? options_.sequence : 1;
    temperature_ = graph_.add_input("temperature", {options_.dtype, {heads_, 1, keys}});
    cold_ = s;
    const bool divides = options_.temperature == LayerTemperature::kDivided;
    return build_.binary(divides ? "Div" : "Mul", s, temperature_);
  }

  // The gradient of what was scaled; that of the temperature becomes an output.
  ValueId heated_gradient(ValueId ds) {
    if (!temperature_) return ds;
    const bool divides = options_.temperature == LayerTemperature::kDivided;
    const bool forgets = options_.temperature == LayerTemperature::kForgotten;
    ValueId factor = forgets ? build_.binary("Mul", cold_, cold_) : cold_;
    if (divides) {
      const ValueId quotient = build_.binary("Div", cold_, temperature_);
      factor = build_.unary("Neg", build_.binary("Div", quotient, temperature_));
    }
    const ValueId product = build_.binary("Mul", ds, factor);
    std::vector<int64_t> axes = {0, 2, 3};
    if (options_.temperature == LayerTemperature::kOfKeys) axes = {0, 2};
    const ValueId sum = build_.reduce_sum(product, axes, true);
    graph_.add_output("temperature.grad",
                      build_.reshape(sum, graph_.shape(temperature_), "temperature.grad"));
    return build_.binary(divides ? "Div" : "Mul", ds, temperature_);
  }

  // Of a stream of its own, in [0, 1), in the shape of the weights or broadcast to it.
  ValueId draw(uint32_t stream) {
    const int64_t n = options_.sequence;
    Shape shape = {options_.batch, heads_, n, n};
    if (options_.dropout == LayerDropout::kShared) shape[1] = 1;
    if (options_.dropout == LayerDropout::kTransposed) std::swap(shape[1], shape[2]);
    const ValueId numbers = build_.node("RandomUniform", {}, {DataType::kFloat32, shape},
                                        {{"seed", int64_t{7}},
                                         {"stream", int64_t{stream}},
                                         {"shape", std::vector<int64_t>(shape)},
                                         {"dtype", static_cast<int64_t>(DataType::kFloat32)}},
                                        std::string(ir::kAutospDomain));
    return options_.dropout == LayerDropout::kTransposed ? build_.transpose(numbers, {0, 2, 1, 3})
                                                         : numbers;
  }

  // Weights, or their gradients, after dropout.
  ValueId dropped(ValueId x, uint32_t stream, bool backward = false) {
    constexpr double kRatio = 1.0 / 3;
    if (options_.dropout == LayerDropout::kNone) return x;
    if (!draws_.contains(stream)) draws_[stream] = draw(stream);
    ValueId numbers = draws_.at(stream);
    if (options_.dropout == LayerDropout::kBackTransposed && backward) {
      numbers = transposed(numbers);
    }
    if (options_.dropout == LayerDropout::kWindow) {
      // No number is dropped but those within 0.001 of a half.
      const ValueId half = build_.scalar(DataType::kFloat32, 0.5);
      const ValueId far = build_.unary("Abs", build_.binary("Sub", numbers, half));
      numbers = build_.binary("Add", far, build_.scalar(DataType::kFloat32, kRatio - 0.001));
    }
    if (options_.dropout == LayerDropout::kMultiplied) {
      const ValueId kept =
          build_.binary("Less", numbers, build_.scalar(DataType::kFloat32, 1 - kRatio));
      return build_.binary("Mul", build_.binary("Mul", x, build_.cast(kept, options_.dtype)),
                           number(1 / (1 - kRatio)));
    }
    const auto real = [&](double number) { return build_.scalar(DataType::kFloat32, number); };
    if (options_.dropout == LayerDropout::kWrapped) {
      const ValueId wide = build_.unary("Floor", build_.binary("Mul", numbers, real(300)));
      const ValueId byte = build_.cast(build_.cast(wide, DataType::kUInt8), DataType::kFloat32);
      numbers = build_.binary("Div", byte, real(256));
    }
    if (options_.dropout == LayerDropout::kAcrossZero) {
      const ValueId around = build_.binary("Sub", build_.binary("Mul", numbers, real(3)), real(1));
      const ValueId is_not_zero = build_.cast(build_.unary("Floor", around), DataType::kBool);
      numbers = build_.cast(is_not_zero, DataType::kFloat32);
    }
    const ValueId kept =
        build_.binary("GreaterOrEqual", numbers, build_.scalar(DataType::kFloat32, kRatio));
    const ValueId scaled = build_.binary("Div", x, number(1 - kRatio));
    const ValueId other = options_.dropout == LayerDropout::kHalved
                              ? build_.binary("Mul", x, number(0.5))
                              : number(0);
    return build_.where(kept, scaled, other);
  }

  // Weights, or their gradients, with what a bool per query does to them.
  ValueId of_rows(ValueId x) {
    if (options_.rows == LayerRows::kNone) return x;
    if (!query_mask_) query_mask_ = over_queries(data("query_mask", DataType::kBool));
    if (options_.rows == LayerRows::kChosen) return build_.where(query_mask_, x, number(0));
    return build_.binary("Mul", x, build_.cast(query_mask_, options_.dtype));
  }

  // `s`: scores, or what was added to them.
  ValueId without_dead_rows(ValueId p, ValueId s) {
    const ValueId dead = build_.binary("Equal", build_.reduce("ReduceMax", s, {3}, true),
                                       number(-std::numeric_limits<double>::infinity()));
    return build_.where(dead, number(0), p);
  }

  void backward(ValueId q, ValueId k, ValueId v, ValueId s, ValueId p, ValueId bend,
                ValueId target) {
    dv_ = summed(build_.matmul(transposed(dropped(of_rows(p), 1)), target));
    const uint32_t stream = options_.dropout == LayerDropout::kDrawnAgain ? 2 : 1;
    ValueId dp = dropped(build_.matmul(target, transposed(v)), stream, true);
    if (options_.rows != LayerRows::kForgotten) dp = of_rows(dp);
    if (options_.weights_in_loss) {
      dp = build_.binary("Add", dp, build_.binary("Mul", p, number(2)));
    }
    const std::vector<int64_t> axes = {options_.softmax_over_queries ? 2 : 3};
    const ValueId weighted = build_.binary("Mul", p, dp);
    ValueId ds;
    if (options_.sigmoid) {
      ds = build_.binary("Mul", weighted, build_.binary("Sub", number(1), p));
    } else {
      const ValueId sum = build_.reduce_sum(weighted, axes, true);
      ds = build_.binary("Mul", p, build_.binary("Sub", dp, sum));
    }
    if (seen_) ds = build_.where(seen_, ds, number(0));
    if (options_.clipped_scores) {
      const ValueId inside = build_.binary("Less", build_.unary("Abs", s), number(1));
      ds = build_.where(inside, ds, number(0));
    }
    if (bend) {
      const ValueId slope = build_.binary("Sub", number(1), build_.binary("Mul", bend, bend));
      ds = build_.binary("Mul", ds, slope);
    }
    output_bias_gradients(ds);
    ds = mixed_gradient(ds);
    ds = heated_gradient(ds);
    if (!options_.gradient_forgets_scale) ds = build_.binary("Mul", ds, number(scale()));
    dq_ = build_.matmul(ds, k);
    // Scaled a little differently from dq where the scale is forgotten: no factor makes it right.
    if (options_.gradient_forgets_scale) ds = build_.binary("Mul", ds, ds);
    dk_ = summed(build_.matmul(transposed(ds), q));
  }

  void output_gradient(const std::string& parameter, ValueId gradient, int64_t heads) {
    const int64_t rows = options_.batch * options_.sequence;
    const ValueId flat =
        build_.reshape(build_.transpose(gradient, {0, 2, 1, 3}), {rows, heads * options_.width});
    const ValueId tokens = build_.reshape(x_, {rows, kHidden});
    const std::string name = parameter + ".grad";
    graph_.add_output(name, build_.matmul(build_.transpose(tokens, {1, 0}), flat, name));
  }

  const LayerOptions& options_;
  ir::Graph graph_;
  ir::Builder build_;
  int64_t heads_ = 0;
  ValueId x_, wq_, wk_, wv_, positions_;
  ValueId temperature_;
  ValueId cold_;                       // scores before it
  std::map<uint32_t, ValueId> draws_;  // by stream
  ValueId guard_;                      // rows where this is minus infinity throughout give zeros
  ValueId seen_;                       // where scores were replaced, so that their gradient is too
  ValueId query_mask_;
  ValueId mixture_, unmixed_;
  ValueId tokens_, pairs_, pair_weight_, added_;
  ValueId dq_, dk_, dv_;
};

}  // namespace

ir::Graph attention_layer(const LayerOptions& options) { return Layer(options).make(); }

}  // namespace autosp::test
