// Attention and its gradient, row by row in double, as docs/attention.md states them.
#include <cmath>
#include <limits>

#include "reference/attention_problem.h"
#include "reference/call.h"

namespace autosp::reference {

namespace {

DeadRows dead_rows_of(const ir::Node& node) {
  const std::string name = node.attributes.get_string("dead_rows", "none");
  if (name == "none") return DeadRows::kNone;
  if (name == "uniform") return DeadRows::kUniform;
  if (name == "zero") return DeadRows::kZero;
  if (name == "unmasked") return DeadRows::kUnmasked;
  if (name == "nan") return DeadRows::kNan;
  throw Error("dead_rows is '{}'", name).help("it is none, uniform, zero, unmasked or nan");
}

// The two masks and segments are [batch or 1, extent].
int64_t batch_stride(const Operand& operand) {
  return !operand || (*operand.shape)[0] == 1 ? 0 : (*operand.shape)[1];
}

constexpr double kLowest = -std::numeric_limits<float>::max();

// Weights of one row, and what a gradient needs besides.
struct Row {
  std::vector<double> capped;  // scaled scores after the softcap, before the bias
  std::vector<double> weight;
  std::vector<double> kept;  // what dropout multiplies each weight by
  double max = 0;
  double sum = 0;
  bool dead = false;
};

template <typename T>
struct Operands {
  const T* query;
  const T* key;
  const T* value;

  Operands(const Call& call, size_t first)
      : query(data<T>(call.operands[first])),
        key(data<T>(call.operands[first + 1])),
        value(data<T>(call.operands[first + 2])) {}
};

template <typename T>
double wide(T x) {
  return static_cast<double>(static_cast<Compute<T>>(x));
}

template <typename T>
double dot(const T* a, const T* b, int64_t count) {
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += wide(a[k]) * wide(b[k]);
  return sum;
}

// Where row (b, h, i) of an array of `width` per query head is, and row j of its KV head.
struct Position {
  int64_t b;
  int64_t h;
  int64_t i;
  int64_t query_row(const AttentionProblem& p) const {
    return (b * p.query_heads + h) * p.queries + i;
  }
  int64_t key_row(const AttentionProblem& p, int64_t j) const {
    return (b * p.kv_heads + h / p.group) * p.keys + j;
  }
};

template <typename T>
double biased(const AttentionProblem& p, const Position& at, int64_t j, double capped) {
  if (p.bias.data == nullptr) return capped;
  return capped + wide(static_cast<const T*>(p.bias.data)[p.bias.at(at.b, at.h, at.i, j)]);
}

// Scores of every key, masked or not.
template <typename T>
void find_scores(const AttentionProblem& p, const Operands<T>& x, const Position& at, Row& row) {
  row.capped.resize(static_cast<size_t>(p.keys));
  row.weight.assign(static_cast<size_t>(p.keys), 0.0);
  row.dead = p.is_dead(at.b, at.i);
  for (int64_t j = 0; j < p.keys; ++j) {
    const double product =
        dot(x.query + at.query_row(p) * p.width, x.key + at.key_row(p, j) * p.width, p.width);
    const double score = static_cast<double>(p.scale) * product;
    const double cap = p.softcap;
    row.capped[static_cast<size_t>(j)] = cap == 0 ? score : cap * std::tanh(score / cap);
  }
}

// The keys whose scores are weighed against each other.
template <typename F>
void for_each_weighed(const AttentionProblem& p, const Position& at, const Row& row, F&& f) {
  const bool all = row.dead && p.dead_rows == DeadRows::kUnmasked;
  const auto [begin, end] = all ? AttentionMask::Range{0, p.keys} : p.mask.range(at.b, at.i);
  for (int64_t j = begin; j < end; ++j) {
    if (all || p.mask.unmasked(at.b, at.i, j)) f(j);
  }
}

// Dead rows whose weights do not depend on scores; true when this is one.
bool fill_dead(const AttentionProblem& p, Row& row) {
  if (!row.dead || p.dead_rows == DeadRows::kUnmasked) return false;
  row.max = kLowest;
  row.sum = 0;
  if (p.dead_rows == DeadRows::kUniform) {
    std::ranges::fill(row.weight, 1 / static_cast<double>(p.keys));
  } else if (p.dead_rows == DeadRows::kNan) {
    std::ranges::fill(row.weight, std::numeric_limits<double>::quiet_NaN());
  }
  return true;
}

template <typename T>
void weigh(const AttentionProblem& p, const Position& at, Row& row) {
  if (fill_dead(p, row)) return;
  const bool has_sink = p.sink != nullptr;
  const double sink = has_sink ? wide(static_cast<const T*>(p.sink)[at.h]) : 0;
  row.max = has_sink ? sink : -std::numeric_limits<double>::infinity();
  for_each_weighed(p, at, row, [&](int64_t j) {
    row.max = std::max(row.max, biased<T>(p, at, j, row.capped[static_cast<size_t>(j)]));
  });
  row.sum = has_sink ? std::exp(sink - row.max) : 0;
  for_each_weighed(p, at, row, [&](int64_t j) {
    const auto k = static_cast<size_t>(j);
    row.weight[k] = std::exp(biased<T>(p, at, j, row.capped[k]) - row.max);
    row.sum += row.weight[k];
  });
  for (double& weight : row.weight) weight /= row.sum;
}

// What dropout makes of the row's weights.
void draw_kept(const AttentionProblem& p, const Position& at, Row& row) {
  row.kept.assign(static_cast<size_t>(p.keys), 1.0);
  if (!p.dropout) return;
  const UniformDraws draws(p.dropout->key, p.step == nullptr ? 0 : *p.step);
  for (int64_t j = 0; j < p.keys; ++j) {
    const uint64_t number = p.dropout->at(at.b, at.h / p.group, at.h % p.group, at.i, j);
    row.kept[static_cast<size_t>(j)] = p.dropout->factor(draws.at(number));
  }
}

template <typename F>
void for_each_row(const AttentionProblem& p, F&& f) {
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.query_heads; ++h) {
      for (int64_t i = 0; i < p.queries; ++i) f(Position{b, h, i});
    }
  }
}

void store(const Result& result, int64_t at, double value) {
  visit(FloatTypes{}, result.dtype,
        [&]<typename S>(std::type_identity<S>) { data<S>(result)[at] = convert<S>(value); });
}

double load(const Operand& operand, int64_t at) {
  double value = 0;
  visit(FloatTypes{}, operand.dtype,
        [&]<typename S>(std::type_identity<S>) { value = wide(data<S>(operand)[at]); });
  return value;
}

void attention(const Call& call) {
  const AttentionProblem p = attention_problem(call, kAttention);
  visit(FloatTypes{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const Operands<T> x(call, kAttention.query);
    Row row;
    std::vector<double> output(static_cast<size_t>(p.value_width));
    for_each_row(p, [&](const Position& at) {
      find_scores(p, x, at, row);
      weigh<T>(p, at, row);
      draw_kept(p, at, row);
      std::ranges::fill(output, 0.0);
      for (int64_t j = 0; j < p.keys; ++j) {
        const double weight = row.weight[static_cast<size_t>(j)] * row.kept[static_cast<size_t>(j)];
        if (weight == 0) continue;  // what is masked may hold anything
        const T* value = x.value + at.key_row(p, j) * p.value_width;
        for (size_t e = 0; e < output.size(); ++e) output[e] += weight * wide(value[e]);
      }
      T* to = data<T>(call.results[0]) + at.query_row(p) * p.value_width;
      for (size_t e = 0; e < output.size(); ++e) to[e] = convert<T>(output[e]);
      if (has_result(call, 1)) store(call.results[1], at.query_row(p), row.max);
      if (has_result(call, 2)) store(call.results[2], at.query_row(p), row.sum);
    });
  });
}

// The weights again, from the saved maximum and sum.
template <typename T>
void weigh_again(const AttentionProblem& p, const Position& at, double max, double sum, Row& row) {
  if (fill_dead(p, row)) return;
  row.max = max;
  row.sum = sum;
  for_each_weighed(p, at, row, [&](int64_t j) {
    const auto k = static_cast<size_t>(j);
    row.weight[k] = std::exp(biased<T>(p, at, j, row.capped[k]) - max) / sum;
  });
}

struct Gradients {
  std::vector<double> query, key, value, bias, sink;
};

template <typename T>
void add_row(const AttentionProblem& p, const Operands<T>& x, const T* output_gradient,
             double delta, const Position& at, const Row& row, Gradients& sums) {
  const auto query = static_cast<size_t>(at.query_row(p) * p.width);
  for (int64_t j = 0; j < p.keys; ++j) {
    const double weight = row.weight[static_cast<size_t>(j)];
    const double kept = row.kept[static_cast<size_t>(j)];
    if (weight == 0) continue;
    const int64_t key_row = at.key_row(p, j);
    const T* value = x.value + key_row * p.value_width;
    for (int64_t e = 0; e < p.value_width; ++e) {
      sums.value[static_cast<size_t>(key_row * p.value_width + e)] +=
          weight * kept * wide(output_gradient[e]);
    }
    if (row.dead && !p.dead_row_gradient) continue;
    const double ds = weight * (kept * dot(output_gradient, value, p.value_width) - delta);
    if (!sums.bias.empty()) sums.bias[static_cast<size_t>(p.bias.at(at.b, at.h, at.i, j))] += ds;
    double product_gradient = ds * p.scale;
    if (p.softcap != 0) {
      const double tanh = row.capped[static_cast<size_t>(j)] / p.softcap;
      product_gradient *= 1 - tanh * tanh;
    }
    const auto key = static_cast<size_t>(key_row * p.width);
    for (size_t d = 0; d < static_cast<size_t>(p.width); ++d) {
      sums.query[query + d] += product_gradient * wide(x.key[key + d]);
      sums.key[key + d] += product_gradient * wide(x.query[query + d]);
    }
  }
}

template <typename T>
void store_all(const Call& call, size_t k, const std::vector<double>& values) {
  if (!has_result(call, k)) return;
  for (size_t i = 0; i < values.size(); ++i) data<T>(call.results[k])[i] = convert<T>(values[i]);
}

void attention_grad(const Call& call) {
  const AttentionProblem p = attention_problem(call, kAttentionGrad);
  const auto zeros = [&](size_t k) {
    return std::vector<double>(has_result(call, k) ? static_cast<size_t>(size_of(call.results[k]))
                                                   : 0);
  };
  Gradients sums;
  sums.query.resize(static_cast<size_t>(size_of(call.operands[1])));
  sums.key.resize(static_cast<size_t>(size_of(call.operands[2])));
  sums.value.resize(static_cast<size_t>(size_of(call.operands[3])));
  sums.bias = zeros(3);
  sums.sink = zeros(4);
  visit(FloatTypes{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const Operands<T> x(call, kAttentionGrad.query);
    Row row;
    for_each_row(p, [&](const Position& at) {
      const int64_t begin = at.query_row(p) * p.value_width;
      const T* output_gradient = data<T>(call.operands[0]) + begin;
      const double delta = dot(output_gradient, data<T>(call.operands[4]) + begin, p.value_width);
      find_scores(p, x, at, row);
      weigh_again<T>(p, at, load(call.operands[5], at.query_row(p)),
                     load(call.operands[6], at.query_row(p)), row);
      draw_kept(p, at, row);
      add_row(p, x, output_gradient, delta, at, row, sums);
      if (!sums.sink.empty()) {
        const double sink = wide(static_cast<const T*>(p.sink)[at.h]);
        sums.sink[static_cast<size_t>(at.h)] -= std::exp(sink - row.max) / row.sum * delta;
      }
    });
    store_all<T>(call, 0, sums.query);
    store_all<T>(call, 1, sums.key);
    store_all<T>(call, 2, sums.value);
    store_all<T>(call, 3, sums.bias);
    store_all<T>(call, 4, sums.sink);
  });
}

constexpr KernelRow kRows[] = {{"Attention", attention}, {"AttentionGrad", attention_grad}};

}  // namespace

std::optional<AttentionDropout> attention_dropout(const ir::Attributes& attributes) {
  if (!attributes.has("dropout_strides")) return std::nullopt;
  AttentionDropout dropout;
  dropout.key = {static_cast<uint64_t>(attributes.get_int("dropout_seed", 0)),
                 static_cast<uint32_t>(attributes.get_int("dropout_stream", 0))};
  dropout.offset = attributes.get_int("dropout_offset", 0);
  const std::vector<int64_t> strides = attributes.get_ints("dropout_strides");
  AUTOSP_CHECK(strides.size() == dropout.strides.size(), "dropout_strides has {} numbers",
               strides.size());
  std::ranges::copy(strides, dropout.strides.begin());
  dropout.from = attributes.get_float("dropout_from", 0);
  dropout.below = attributes.get_float("dropout_below", 1);
  dropout.scale = attributes.get_float("dropout_scale", 1);
  return dropout;
}

void set_attention_dropout(ir::Attributes& attributes, const AttentionDropout& dropout) {
  attributes.set("dropout_seed", static_cast<int64_t>(dropout.key.seed));
  attributes.set("dropout_stream", int64_t{dropout.key.stream});
  attributes.set("dropout_offset", dropout.offset);
  attributes.set("dropout_strides",
                 std::vector<int64_t>(dropout.strides.begin(), dropout.strides.end()));
  attributes.set("dropout_from", dropout.from);
  attributes.set("dropout_below", dropout.below);
  attributes.set("dropout_scale", dropout.scale);
}

AttentionProblem attention_problem(const Call& call, const AttentionOperands& operands) {
  const Operand& query = call.operands[operands.query];
  const Operand& key = call.operands[operands.query + 1];
  const Operand& value = call.operands[operands.query + 2];
  const auto optional = [&](size_t k) -> const Operand& {
    return operand(call, operands.optional + k);
  };
  AttentionProblem p;
  p.batch = (*query.shape)[0];
  p.query_heads = (*query.shape)[1];
  p.kv_heads = (*key.shape)[1];
  p.group = p.kv_heads == 0 ? 1 : p.query_heads / p.kv_heads;
  p.queries = (*query.shape)[2];
  p.keys = (*key.shape)[2];
  p.width = (*query.shape)[3];
  p.value_width = (*value.shape)[3];
  p.scale = call.node.attributes.get_float("scale", 1);
  p.softcap = call.node.attributes.get_float("softcap", 0);
  p.dead_rows = dead_rows_of(call.node);
  p.dead_row_gradient = call.node.attributes.get_int("dead_row_gradient", 0) != 0;
  if (const Operand& bias = optional(0)) {
    p.bias.data = bias.data;
    const Strides strides = row_major_strides(*bias.shape);
    for (size_t k = 0; k < 4; ++k) p.bias.strides[k] = (*bias.shape)[k] == 1 ? 0 : strides[k];
  }
  p.mask = {.begin = data<int64_t>(optional(1)),
            .end = data<int64_t>(optional(2)),
            .key = data<bool>(optional(3)),
            .query_segment = data<int64_t>(optional(4)),
            .key_segment = data<int64_t>(optional(5)),
            .begin_stride = batch_stride(optional(1)),
            .end_stride = batch_stride(optional(2)),
            .key_stride = batch_stride(optional(3)),
            .query_segment_stride = batch_stride(optional(4)),
            .key_segment_stride = batch_stride(optional(5)),
            .num_keys = p.keys};
  p.sink = optional(6).data;
  p.dropout = attention_dropout(call.node.attributes);
  p.step = data<int64_t>(optional(7));
  return p;
}

std::span<const KernelRow> attention_kernels() { return kRows; }

}  // namespace autosp::reference
