// Attention as ONNX Runtime's optimizer fuses it, written out again: the pass that recognises
// attention (transforms/fuse_attention) then finds it like any other.
//
// Without a cache of earlier keys and values: a training step has none.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "transforms/canonicalize/microsoft/lowering.h"

namespace autosp::transforms::microsoft {

using ir::Builder;
using ir::DataType;
using ir::Shape;

namespace {

[[noreturn]] void refuse(const Lowering& lowering, const std::string& what) {
  throw Error("{} {}, which is not supported", lowering.rewriter.from().describe(lowering.node),
              what)
      .note("a training graph has neither a cache nor packed operands")
      .help("export the model without the optimizer that fused its attention");
}

void refuse_operands(const Lowering& lowering, size_t first, size_t last, const char* what) {
  for (size_t k = first; k <= last; ++k) {
    if (lowering.has(k)) refuse(lowering, fmt::format("has {} (operand {})", what, k));
  }
  for (size_t k = 1; k < lowering.node.outputs.size(); ++k) {
    if (lowering.wants(k)) refuse(lowering, fmt::format("gives a cache (result {})", k));
  }
}

ValueId positions(Builder& build, int64_t count) {
  std::vector<int64_t> all(static_cast<size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return build.int64s(std::move(all));
}

// Operands as [batch, heads, positions, width]. Masks are bools that broadcast to the scores: true
// where a key is seen.
class Attention {
 public:
  Attention(const Lowering& lowering, int64_t heads, int64_t kv_heads)
      : lowering_(lowering), build_(lowering.build()), heads_(heads), kv_heads_(kv_heads) {
    if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0) {
      refuse(lowering, fmt::format("has {} heads over {} KV heads", heads, kv_heads));
    }
  }

  // [batch, positions, heads * width] -> [batch, heads, positions, width]; a bias first.
  ValueId split(ValueId x, int64_t heads, ValueId bias = {}) const {
    const Shape shape = build_.shape(x);
    if (shape.size() != 3 || shape[2] % heads != 0) {
      refuse(lowering_, fmt::format("has an operand {}", ir::to_string(shape)));
    }
    const Shape apart = {shape[0], shape[1], heads, shape[2] / heads};
    if (bias) x = build_.binary("Add", x, bias);
    return build_.transpose(build_.reshape(x, apart), {0, 2, 1, 3});
  }

  // Keys that padding hides by a number that is added, and others that nothing shows.
  void pad(ValueId seen, double number) {
    padded_ = seen;
    padding_ = number;
  }
  void mask(ValueId seen) { seen_ = seen_ ? build_.binary("And", seen_, seen) : seen; }
  void add(ValueId bias) { bias_ = bias; }

  // Keys up to the query's own position, at most `window` of them where it is positive.
  void mask_later(int64_t queries, int64_t keys, int64_t window = 0) {
    if (queries != keys) refuse(lowering_, "is causal over keys that are not its queries");
    const ValueId query = build_.unsqueeze(positions(build_, queries), {1});
    const ValueId key = build_.unsqueeze(positions(build_, keys), {0});
    mask(build_.binary("LessOrEqual", key, query));
    if (window <= 0) return;
    const ValueId first =
        build_.binary("Sub", query, build_.scalar(DataType::kInt64, static_cast<double>(window)));
    mask(build_.binary("Greater", key, first));
  }

  // Causal masks replace scores by the lowest number, paddings add one of their own: a query whose
  // keys so far are all padding sees these, and none that follow.
  ValueId weights(ValueId query, ValueId key, double softcap) const {
    const auto width = static_cast<double>(build_.shape(query)[3]);
    double scale = lowering_.node.attributes.get_float("scale", 0);
    if (scale == 0) scale = 1 / std::sqrt(width);
    ValueId scores = build_.matmul(query, build_.transpose(repeated(key), {0, 1, 3, 2}));
    scores = build_.binary("Mul", scores, build_.scalar_like(scores, scale));
    if (softcap > 0) {
      const ValueId cap = build_.scalar_like(scores, softcap);
      scores = build_.binary("Mul", build_.unary("Tanh", build_.binary("Div", scores, cap)), cap);
    }
    if (bias_) scores = build_.binary("Add", scores, bias_);
    if (padded_) {
      const ValueId number = build_.where(padded_, build_.scalar_like(scores, 0),
                                          build_.scalar_like(scores, padding_));
      scores = build_.binary("Add", scores, number);
    }
    if (seen_) {
      const double lowest = build_.dtype(scores) == DataType::kFloat16
                                ? -65504
                                : std::numeric_limits<float>::lowest();
      scores = build_.where(seen_, scores, build_.scalar_like(scores, lowest));
    }
    return build_.softmax("Softmax", scores, 3);
  }

  // [batch, queries, heads * value width], as result 0.
  void finish(ValueId weights, ValueId value) const {
    const ValueId output = build_.transpose(build_.matmul(weights, repeated(value)), {0, 2, 1, 3});
    const Shape shape = build_.shape(output);
    lowering_.result(0, build_.reshape(output, {shape[0], shape[1], shape[2] * shape[3]}));
  }

 private:
  // A KV head once for each of its query heads.
  ValueId repeated(ValueId x) const {
    if (heads_ == kv_heads_) return x;
    const Shape shape = build_.shape(x);
    const Shape wide = {shape[0], kv_heads_, heads_ / kv_heads_, shape[2], shape[3]};
    return build_.reshape(build_.expand(build_.unsqueeze(x, {2}), wide),
                          {shape[0], heads_, shape[2], shape[3]});
  }

  const Lowering& lowering_;
  Builder& build_;
  int64_t heads_;
  int64_t kv_heads_;
  ValueId seen_;
  ValueId padded_;
  double padding_ = 0;
  ValueId bias_;
};

int64_t heads_of(const Lowering& lowering, const char* name) {
  return lowering.node.attributes.get_int(name, 0);
}

double masking_number(const Lowering& lowering) {
  return lowering.node.attributes.get_float("mask_filter_value", -10000.0F);
}

// Which keys a mask of integers lets through: a number of keys per sample [B], a bit per key
// [B, keys], or per query and key [B, queries, keys].
ValueId seen_keys(const Lowering& lowering, ValueId mask, int64_t batch, int64_t keys) {
  Builder& build = lowering.build();
  const Shape shape = build.shape(mask);
  if (shape == Shape{batch}) {
    const ValueId count = build.cast(build.unsqueeze(mask, {1, 2, 3}), DataType::kInt64);
    return build.binary("Less", positions(build, keys), count);
  }
  const ValueId bits = build.binary("Greater", mask, build.scalar_like(mask, 0));
  if (shape == Shape{batch, keys}) return build.unsqueeze(bits, {1, 2});
  if (shape.size() == 3 && shape[0] == batch && shape[2] == keys) {
    return build.unsqueeze(bits, {1});
  }
  refuse(lowering, fmt::format("has a mask {}", ir::to_string(shape)));
}

// query, key, value [B, positions, hidden], bias of all three, key_padding_mask, attention_bias
void lower_multi_head_attention(const Lowering& lowering) {
  refuse_operands(lowering, 6, 9, "a cache");
  if (!lowering.has(1) || !lowering.has(2)) refuse(lowering, "has packed operands");
  Builder& build = lowering.build();
  const int64_t heads = heads_of(lowering, "num_heads");
  Attention attention(lowering, heads, heads);
  std::vector<ValueId> parts;
  int64_t begin = 0;
  for (size_t k = 0; k < 3; ++k) {
    const ValueId x = lowering.operand(k);
    const int64_t hidden = build.shape(x).back();
    ValueId bias;
    if (lowering.has(3)) bias = build.slice(lowering.operand(3), 0, begin, begin + hidden);
    begin += hidden;
    parts.push_back(attention.split(x, heads, bias));
  }
  const Shape query = build.shape(parts[0]);
  const int64_t keys = build.shape(parts[1])[2];
  if (lowering.has(4)) {
    attention.pad(seen_keys(lowering, lowering.operand(4), query[0], keys),
                  masking_number(lowering));
  }
  if (lowering.has(5)) attention.add(lowering.operand(5));
  if (heads_of(lowering, "unidirectional") != 0) attention.mask_later(query[2], keys);
  const ValueId weights = attention.weights(parts[0], parts[1], 0);
  attention.finish(weights, parts[2]);
}

// input [B, positions, in], weights [in, 3 hidden], bias, mask, cache, attention bias
void lower_attention(const Lowering& lowering) {
  refuse_operands(lowering, 4, 4, "a cache");
  refuse_operands(lowering, 6, 6, "a cache");
  if (heads_of(lowering, "do_rotary") != 0) refuse(lowering, "rotates its operands");
  Builder& build = lowering.build();
  const int64_t heads = heads_of(lowering, "num_heads");
  Attention attention(lowering, heads, heads);
  ValueId all = build.matmul(lowering.operand(0), lowering.operand(1));
  if (lowering.has(2)) all = build.binary("Add", all, lowering.operand(2));
  const int64_t width = build.shape(all).back();
  std::vector<int64_t> sizes = lowering.node.attributes.get_ints("qkv_hidden_sizes");
  if (sizes.empty()) sizes = {width / 3, width / 3, width / 3};
  if (sizes.size() != 3 || sizes[0] + sizes[1] + sizes[2] != width) {
    refuse(lowering, fmt::format("divides {} columns into {}", width, ir::to_string(sizes)));
  }
  const std::vector<ValueId> parts = build.split(all, sizes, 2);
  const Shape shape = build.shape(all);
  const int64_t batch = shape[0];
  const int64_t length = shape[1];
  if (lowering.has(3)) {
    attention.pad(seen_keys(lowering, lowering.operand(3), batch, length),
                  masking_number(lowering));
  }
  if (lowering.has(5)) attention.add(lowering.operand(5));
  if (heads_of(lowering, "unidirectional") != 0) attention.mask_later(length, length);
  const ValueId weights =
      attention.weights(attention.split(parts[0], heads), attention.split(parts[1], heads), 0);
  attention.finish(weights, attention.split(parts[2], heads));
}

// query, key, value [B, positions, heads * width], cache, seqlens_k [B]: the last key of each
// sample, total_sequence_length. Causal.
void lower_group_query_attention(const Lowering& lowering) {
  refuse_operands(lowering, 3, 4, "a cache");
  refuse_operands(lowering, 7, 11, "rotation tables, a bias or a sink");
  if (heads_of(lowering, "do_rotary") != 0) refuse(lowering, "rotates its operands");
  if (heads_of(lowering, "smooth_softmax") == 1) refuse(lowering, "has one more in its softmax");
  if (!lowering.has(1) || !lowering.has(2)) refuse(lowering, "has packed operands");
  Builder& build = lowering.build();
  const int64_t heads = heads_of(lowering, "num_heads");
  const int64_t kv_heads = heads_of(lowering, "kv_num_heads");
  Attention attention(lowering, heads, kv_heads);
  const ValueId query = attention.split(lowering.operand(0), heads);
  const ValueId key = attention.split(lowering.operand(1), kv_heads);
  const ValueId value = attention.split(lowering.operand(2), kv_heads);
  const int64_t length = build.shape(key)[2];
  const int64_t window = lowering.node.attributes.get_int("local_window_size", -1);
  const auto last_keys = lowering.rewriter.to().constant_ints(lowering.operand(5));
  const bool whole = last_keys && std::ranges::all_of(
                                      *last_keys, [&](int64_t last) { return last == length - 1; });
  if (window == 0 || (window > 0 && !whole)) {
    refuse(lowering, "has a window over samples of unknown lengths");
  }
  attention.mask_later(build.shape(query)[2], length, window);
  const ValueId last =
      build.cast(build.unsqueeze(lowering.operand(5), {1, 2, 3}), DataType::kInt64);
  attention.mask(build.binary("LessOrEqual", positions(build, length), last));
  const double softcap = lowering.node.attributes.get_float("softcap", 0);
  const ValueId weights = attention.weights(query, key, softcap);
  attention.finish(weights, value);
}

}  // namespace

const std::vector<LoweringRow>& attention_lowerings() {
  static const std::vector<LoweringRow> kRows = {
      {"MultiHeadAttention", lower_multi_head_attention},
      {"Attention", lower_attention},
      {"GroupQueryAttention", lower_group_query_attention},
  };
  return kRows;
}

}  // namespace autosp::transforms::microsoft
