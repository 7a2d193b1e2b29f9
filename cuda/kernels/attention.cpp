// Attention and its gradient (docs/attention.md) for what cuDNN does not take: any masks, bias,
// softcap, sinks and head widths. A block of threads takes a query's row (forward, query gradient)
// or a key's (key and value gradients) and walks over the other side kLanes at a time, so that
// scores exist for one row and kLanes columns. Sums are kept in float, in a fixed order.
#include <cmath>

#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/tree.h"
#include "reference/attention_problem.h"

namespace autosp::kernels {

namespace {

using reference::AttentionProblem;
using reference::DeadRows;

constexpr int kWidest = 256;  // of queries, keys and values
constexpr float kLowest = -3.402823466e+38F;

// What a kernel needs of the problem. Pointers are the device's.
template <typename T>
struct Inputs {
  int64_t query_heads, kv_heads, group, queries, keys, width, value_width;
  float scale, softcap;
  DeadRows dead_rows;
  bool dead_row_gradient;
  const int64_t* begin;
  const int64_t* end;
  const bool* key_mask;
  const int64_t* query_segment;
  const int64_t* key_segment;
  int64_t begin_stride, end_stride, key_stride, query_segment_stride, key_segment_stride;
  const T* bias;
  int64_t bias_strides[4];
  const T* sink;
  const T* query;
  const T* key;
  const T* value;

  Inputs(const executor::KernelCall& call, const AttentionProblem& p, size_t first)
      : query_heads(p.query_heads),
        kv_heads(p.kv_heads),
        group(p.group),
        queries(p.queries),
        keys(p.keys),
        width(p.width),
        value_width(p.value_width),
        scale(p.scale),
        softcap(p.softcap),
        dead_rows(p.dead_rows),
        dead_row_gradient(p.dead_row_gradient),
        begin(p.mask.begin),
        end(p.mask.end),
        key_mask(p.mask.key),
        query_segment(p.mask.query_segment),
        key_segment(p.mask.key_segment),
        begin_stride(p.mask.begin_stride),
        end_stride(p.mask.end_stride),
        key_stride(p.mask.key_stride),
        query_segment_stride(p.mask.query_segment_stride),
        key_segment_stride(p.mask.key_segment_stride),
        bias(static_cast<const T*>(p.bias.data)),
        bias_strides{p.bias.strides[0], p.bias.strides[1], p.bias.strides[2], p.bias.strides[3]},
        sink(static_cast<const T*>(p.sink)),
        query(data<T>(call.call.operands[first])),
        key(data<T>(call.call.operands[first + 1])),
        value(data<T>(call.call.operands[first + 2])) {}

  struct Place {
    int64_t batch, head, query;
  };
  // Of row `row` of [batch, query heads, queries].
  AUTOSP_DEVICE Place place(int64_t row) const {
    return {row / (query_heads * queries), row / queries % query_heads, row % queries};
  }
  AUTOSP_DEVICE int64_t key_row(const Place& at, int64_t j) const {
    return (at.batch * kv_heads + at.head / group) * keys + j;
  }
  AUTOSP_DEVICE bool sees(const Place& at, int64_t j) const {
    if (begin != nullptr && j < begin[at.batch * begin_stride + at.query]) return false;
    if (end != nullptr && j >= end[at.batch * end_stride + at.query]) return false;
    if (key_mask != nullptr && !key_mask[at.batch * key_stride + j]) return false;
    return query_segment == nullptr || query_segment[at.batch * query_segment_stride + at.query] ==
                                           key_segment[at.batch * key_segment_stride + j];
  }
  // After the softcap, before the bias.
  AUTOSP_DEVICE float capped(int64_t query_row, int64_t key_row) const {
    float product = 0;
    for (int64_t k = 0; k < width; ++k) {
      product += static_cast<float>(query[query_row * width + k]) *
                 static_cast<float>(key[key_row * width + k]);
    }
    const float score = scale * product;
    return softcap == 0 ? score : softcap * tanh(score / softcap);
  }
  AUTOSP_DEVICE int64_t bias_at(const Place& at, int64_t j) const {
    return at.batch * bias_strides[0] + at.head * bias_strides[1] + at.query * bias_strides[2] +
           j * bias_strides[3];
  }
  AUTOSP_DEVICE float biased(const Place& at, int64_t j, float score) const {
    return bias == nullptr ? score : score + static_cast<float>(bias[bias_at(at, j)]);
  }
};

// The weight of a key in a row that sees none.
AUTOSP_DEVICE float dead_weight(DeadRows kind, int64_t keys) {
  if (kind == DeadRows::kUniform) return 1.0F / static_cast<float>(keys);
  return kind == DeadRows::kNan ? NAN : 0.0F;
}

// A row's statistics: what the forward pass saves.
template <typename T>
struct Forward {
  struct Shared {
    float value[kLanes];
    float weight[kLanes];
    float output[kWidest];
    float max;
    float old_scale;
    float sum;
    bool dead;
    bool all;  // a dead row that is weighed as if nothing were masked
  };
  // Phases of a chunk of kLanes keys: scores; their maximum; weights; their sum; the output.
  static constexpr int kMaxTree = 1;
  static constexpr int kWeigh = kMaxTree + kTreePhases;
  static constexpr int kSumTree = kWeigh + 1;
  static constexpr int kOutput = kSumTree + kTreePhases;
  static constexpr int kChunk = kOutput + 1;
  // Before the chunks: whether a key is seen.
  static constexpr int kFirst = kTreePhases + 2;

  T* output;
  float* maxima;  // or null
  float* sums;    // or null
  Inputs<T> in;

  AUTOSP_DEVICE int64_t chunks() const { return (in.keys + kLanes - 1) / kLanes; }
  AUTOSP_DEVICE int phases() const { return kFirst + static_cast<int>(chunks()) * kChunk + 1; }

  AUTOSP_DEVICE void operator()(int64_t row, int lane, int phase, Shared& s) const {
    const auto at = in.place(row);
    if (phase < kFirst) return begin_row(at, lane, phase, s);
    if (phase + 1 == phases()) return write(row, lane, s);
    if (s.dead && !s.all) return;
    const int64_t j = static_cast<int64_t>((phase - kFirst) / kChunk) * kLanes + lane;
    weigh_chunk(row, at, j, lane, (phase - kFirst) % kChunk, s);
  }

 private:
  using Place = typename Inputs<T>::Place;

  AUTOSP_DEVICE void begin_row(const Place& at, int lane, int phase, Shared& s) const {
    if (phase == 0) {
      float seen = in.sink != nullptr ? 1.0F : 0.0F;
      for (int64_t j = lane; j < in.keys && seen == 0; j += kLanes) {
        if (in.sees(at, j)) seen = 1.0F;
      }
      s.value[lane] = seen;
      for (int64_t e = lane; e < in.value_width; e += kLanes) s.output[e] = 0;
    } else if (phase <= kTreePhases) {
      combine_tree(s.value, lane, phase - 1, Add());
    } else if (lane == 0) {
      s.dead = s.value[0] == 0;
      s.all = s.dead && in.dead_rows == DeadRows::kUnmasked;
      s.max = in.sink != nullptr ? static_cast<float>(in.sink[at.head]) : -INFINITY;
      s.sum = in.sink != nullptr ? 1.0F : 0.0F;
    }
  }

  AUTOSP_DEVICE void weigh_chunk(int64_t row, const Place& at, int64_t j, int lane, int phase,
                                 Shared& s) const {
    if (phase == 0) {
      const bool counts = j < in.keys && (s.all || in.sees(at, j));
      s.weight[lane] = counts ? in.biased(at, j, in.capped(row, in.key_row(at, j))) : -INFINITY;
      s.value[lane] = s.weight[lane];
    } else if (phase < kWeigh) {
      combine_tree(s.value, lane, phase - kMaxTree, Larger());
    } else if (phase == kWeigh) {
      // Every thread finds the same; s.max itself changes in the last phase.
      const float max = Larger()(s.max, s.value[0]);
      s.weight[lane] = s.weight[lane] == -INFINITY ? 0.0F : exp(s.weight[lane] - max);
    } else if (phase == kSumTree) {
      if (lane == 0) {
        const float max = Larger()(s.max, s.value[0]);
        s.old_scale = s.max == -INFINITY ? 0.0F : exp(s.max - max);
        s.max = max;
      }
    } else if (phase < kOutput) {
      sum_weights(lane, phase - kSumTree - 1, s);
    } else {
      add_values(at, j - lane, lane, s);
    }
  }

  // Two levels of the tree fewer than phases: the first adds weights in fours.
  AUTOSP_DEVICE static void sum_weights(int lane, int level, Shared& s) {
    if (level == 0) {
      s.value[lane] = lane * 4 < kLanes ? s.weight[lane * 4] + s.weight[lane * 4 + 1] +
                                              s.weight[lane * 4 + 2] + s.weight[lane * 4 + 3]
                                        : 0.0F;
      return;
    }
    const int half = kLanes / 4 >> level;
    if (lane < half) s.value[lane] += s.value[lane + half];
  }

  AUTOSP_DEVICE void add_values(const Place& at, int64_t first, int lane, Shared& s) const {
    const int64_t count = in.keys - first < kLanes ? in.keys - first : kLanes;
    for (int64_t e = lane; e < in.value_width; e += kLanes) {
      float total = s.output[e] * s.old_scale;
      for (int64_t k = 0; k < count; ++k) {
        if (s.weight[k] == 0) continue;  // what is masked may hold anything
        total += s.weight[k] *
                 static_cast<float>(in.value[in.key_row(at, first + k) * in.value_width + e]);
      }
      s.output[e] = total;
    }
    if (lane == 0) s.sum = s.sum * s.old_scale + s.value[0];
  }

  AUTOSP_DEVICE void write(int64_t row, int lane, const Shared& s) const {
    const auto at = in.place(row);
    const bool fixed = s.dead && !s.all;
    const float weight = dead_weight(in.dead_rows, in.keys);
    for (int64_t e = lane; e < in.value_width; e += kLanes) {
      float value = fixed ? 0 : s.output[e] / s.sum;
      for (int64_t j = 0; fixed && weight != 0 && j < in.keys; ++j) {
        value += weight * static_cast<float>(in.value[in.key_row(at, j) * in.value_width + e]);
      }
      output[row * in.value_width + e] = T(value);
    }
    if (lane != 0) return;
    if (maxima != nullptr) maxima[row] = fixed ? kLowest : s.max;
    if (sums != nullptr) sums[row] = fixed ? 0.0F : s.sum;
  }
};

// --- Backward.

template <typename T>
struct Saved {
  const T* output_gradient;
  const T* output;
  const float* maxima;
  const float* sums;
};

// delta = dO . O of every row, and whether the row is dead.
template <typename T>
struct Prepare {
  float* delta;
  int8_t* dead;
  Inputs<T> in;
  Saved<T> saved;
  AUTOSP_DEVICE void operator()(int64_t row) const {
    float sum = 0;
    for (int64_t e = 0; e < in.value_width; ++e) {
      sum += static_cast<float>(saved.output_gradient[row * in.value_width + e]) *
             static_cast<float>(saved.output[row * in.value_width + e]);
    }
    delta[row] = sum;
    const auto at = in.place(row);
    bool seen = in.sink != nullptr;
    for (int64_t j = 0; j < in.keys && !seen; ++j) seen = in.sees(at, j);
    dead[row] = seen ? 0 : 1;
  }
};

// What a query and a key have to do with each other.
template <typename T>
struct Pair {
  float weight = 0;
  float product_gradient = 0;  // of query . key
  float bias_gradient = 0;

  AUTOSP_DEVICE Pair(const Inputs<T>& in, const Saved<T>& saved, const float* delta,
                     const int8_t* dead, const typename Inputs<T>::Place& at, int64_t row,
                     int64_t j) {
    const bool is_dead = dead[row] != 0;
    const bool all = is_dead && in.dead_rows == DeadRows::kUnmasked;
    if (is_dead && !all) {
      weight = dead_weight(in.dead_rows, in.keys);
    } else if (all || in.sees(at, j)) {
      weight = -1;  // to be found
    }
    if (weight == 0) return;
    const float capped = in.capped(row, in.key_row(at, j));
    if (weight == -1) {
      weight = exp(in.biased(at, j, capped) - saved.maxima[row]) / saved.sums[row];
    }
    if (is_dead && !in.dead_row_gradient) return;
    float dot = 0;
    const T* value = in.value + in.key_row(at, j) * in.value_width;
    for (int64_t e = 0; e < in.value_width; ++e) {
      dot += static_cast<float>(saved.output_gradient[row * in.value_width + e]) *
             static_cast<float>(value[e]);
    }
    bias_gradient = weight * (dot - delta[row]);
    const float tanh_of = in.softcap == 0 ? 0.0F : capped / in.softcap;
    product_gradient = bias_gradient * in.scale * (1 - tanh_of * tanh_of);
  }
};

template <typename T>
struct Gradients {
  struct Shared {
    float product_gradient[kLanes];
    float weight[kLanes];
    float sum[kWidest];        // of a query's or a key's gradient
    float value_sum[kWidest];  // of a value's
  };
  Inputs<T> in;
  Saved<T> saved;
  const float* delta;
  const int8_t* dead;
};

// A row per query.
template <typename T>
struct QueryGradient : Gradients<T> {
  using Shared = typename Gradients<T>::Shared;
  T* gradient;
  AUTOSP_DEVICE int phases() const {
    return 2 + 2 * static_cast<int>((this->in.keys + kLanes - 1) / kLanes);
  }
  AUTOSP_DEVICE void operator()(int64_t row, int lane, int phase, Shared& s) const {
    const auto& in = this->in;
    const auto at = in.place(row);
    const int64_t first = static_cast<int64_t>((phase - 1) / 2) * kLanes;
    if (phase == 0) {
      for (int64_t d = lane; d < in.width; d += kLanes) s.sum[d] = 0;
    } else if (phase + 1 == phases()) {
      for (int64_t d = lane; d < in.width; d += kLanes) gradient[row * in.width + d] = T(s.sum[d]);
    } else if (phase % 2 == 1) {
      const int64_t j = first + lane;
      s.product_gradient[lane] =
          j < in.keys
              ? Pair<T>(in, this->saved, this->delta, this->dead, at, row, j).product_gradient
              : 0.0F;
    } else {
      for (int64_t d = lane; d < in.width; d += kLanes) {
        float total = s.sum[d];
        for (int64_t k = 0; k < kLanes && first + k < in.keys; ++k) {
          if (s.product_gradient[k] == 0) continue;
          total += s.product_gradient[k] *
                   static_cast<float>(in.key[in.key_row(at, first + k) * in.width + d]);
        }
        s.sum[d] = total;
      }
    }
  }
};

// A row per key and KV head: the queries of all heads of its group, one after the other.
template <typename T>
struct KeyGradients : Gradients<T> {
  using Shared = typename Gradients<T>::Shared;
  using Place = typename Inputs<T>::Place;
  T* key_gradient;
  T* value_gradient;
  AUTOSP_DEVICE int phases() const {
    const int64_t terms = this->in.group * this->in.queries;
    return 2 + 2 * static_cast<int>((terms + kLanes - 1) / kLanes);
  }
  AUTOSP_DEVICE void operator()(int64_t key_row, int lane, int phase, Shared& s) const {
    const auto& in = this->in;
    const int64_t first = static_cast<int64_t>((phase - 1) / 2) * kLanes;
    if (phase == 0) {
      for (int64_t d = lane; d < kWidest; d += kLanes) s.sum[d] = s.value_sum[d] = 0;
    } else if (phase + 1 == phases()) {
      for (int64_t d = lane; d < in.width; d += kLanes) {
        key_gradient[key_row * in.width + d] = T(s.sum[d]);
      }
      for (int64_t e = lane; e < in.value_width; e += kLanes) {
        value_gradient[key_row * in.value_width + e] = T(s.value_sum[e]);
      }
    } else if (phase % 2 == 1) {
      meet(key_row, first + lane, lane, s);
    } else {
      add(key_row, first, lane, s);
    }
  }

 private:
  // Term t is query t % queries of head t / queries of the group.
  AUTOSP_DEVICE Place place(int64_t key_row, int64_t term) const {
    const auto& in = this->in;
    const int64_t kv_head = key_row / in.keys % in.kv_heads;
    return {key_row / (in.keys * in.kv_heads), kv_head * in.group + term / in.queries,
            term % in.queries};
  }
  AUTOSP_DEVICE int64_t query_row(const Place& at) const {
    return (at.batch * this->in.query_heads + at.head) * this->in.queries + at.query;
  }
  AUTOSP_DEVICE void meet(int64_t key_row, int64_t term, int lane, Shared& s) const {
    s.weight[lane] = s.product_gradient[lane] = 0;
    if (term >= this->in.group * this->in.queries) return;
    const Place at = place(key_row, term);
    const Pair<T> pair(this->in, this->saved, this->delta, this->dead, at, query_row(at),
                       key_row % this->in.keys);
    s.weight[lane] = pair.weight;
    s.product_gradient[lane] = pair.product_gradient;
  }
  AUTOSP_DEVICE void add(int64_t key_row, int64_t first, int lane, Shared& s) const {
    const auto& in = this->in;
    for (int64_t k = 0; k < kLanes && first + k < in.group * in.queries; ++k) {
      if (s.weight[k] == 0) continue;
      const int64_t row = query_row(place(key_row, first + k));
      for (int64_t d = lane; d < in.width; d += kLanes) {
        s.sum[d] += s.product_gradient[k] * static_cast<float>(in.query[row * in.width + d]);
      }
      for (int64_t e = lane; e < in.value_width; e += kLanes) {
        s.value_sum[e] +=
            s.weight[k] * static_cast<float>(this->saved.output_gradient[row * in.value_width + e]);
      }
    }
  }
};

// An entry of the sink's gradient: a head's.
template <typename T>
struct SinkGradient {
  T* gradient;
  Inputs<T> in;
  Saved<T> saved;
  const float* delta;
  int64_t batch;
  AUTOSP_DEVICE void operator()(int64_t head) const {
    float total = 0;
    const auto sink = static_cast<float>(in.sink[head]);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = 0; i < in.queries; ++i) {
        const int64_t row = (b * in.query_heads + head) * in.queries + i;
        total -= exp(sink - saved.maxima[row]) / saved.sums[row] * delta[row];
      }
    }
    gradient[head] = T(total);
  }
};

using AttentionTypes = TypeList<float, Float16, BFloat16>;

bool fits(const ir::Graph& graph, const ir::Node& node, size_t query) {
  const ir::Type& q = graph.type(node.inputs[query]);
  const ir::Type& v = graph.type(node.inputs[query + 2]);
  if (!contains(AttentionTypes{}, q.dtype)) return false;
  if (q.shape[3] > kWidest || v.shape[3] > kWidest || q.shape[2] == 0 || v.shape[2] == 0) {
    return false;
  }
  return true;
}

bool fits_forward(const ir::Graph& graph, const ir::Node& node) {
  return fits(graph, node, reference::kAttention.query);
}

// The gradient of the bias sums over what it broadcasts over: left to the host.
bool fits_backward(const ir::Graph& graph, const ir::Node& node) {
  return fits(graph, node, reference::kAttentionGrad.query) && !node.output(3);
}

void attention(const executor::KernelCall& call) {
  const AttentionProblem p = reference::attention_problem(call.call, reference::kAttention);
  const int64_t rows = p.batch * p.query_heads * p.queries;
  visit(AttentionTypes{}, call.call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    launch_rows(
        Queue(call), rows,
        Forward<T>{data<T>(call.call.results[0]), data<float>(result(call, 1)),
                   data<float>(result(call, 2)), Inputs<T>(call, p, reference::kAttention.query)});
  });
}

int64_t query_rows(const ir::Graph& graph, const ir::Node& node) {
  const ir::Shape& query = graph.shape(node.inputs[reference::kAttentionGrad.query]);
  return query[0] * query[1] * query[2];
}

int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int /*workers*/) {
  return query_rows(graph, node) * static_cast<int64_t>(sizeof(float) + sizeof(int8_t));
}

template <typename T>
void differentiate(const executor::KernelCall& call, const AttentionProblem& p) {
  const auto& operands = call.call.operands;
  const Inputs<T> in(call, p, reference::kAttentionGrad.query);
  const Saved<T> saved{data<T>(operands[0]), data<T>(operands[4]), data<float>(operands[5]),
                       data<float>(operands[6])};
  const int64_t rows = p.batch * p.query_heads * p.queries;
  auto* delta = reinterpret_cast<float*>(call.workspace);
  auto* dead = reinterpret_cast<int8_t*>(delta + rows);
  const Queue queue(call);
  launch(queue, rows, Prepare<T>{delta, dead, in, saved});
  const Gradients<T> common{in, saved, delta, dead};
  launch_rows(queue, rows, QueryGradient<T>{common, data<T>(call.call.results[0])});
  launch_rows(
      queue, p.batch * p.kv_heads * p.keys,
      KeyGradients<T>{common, data<T>(call.call.results[1]), data<T>(call.call.results[2])});
  if (result(call, 4)) {
    launch(queue, p.query_heads,
           SinkGradient<T>{data<T>(result(call, 4)), in, saved, delta, p.batch});
  }
}

void attention_grad(const executor::KernelCall& call) {
  const AttentionProblem p = reference::attention_problem(call.call, reference::kAttentionGrad);
  visit(AttentionTypes{}, call.call.operands[0].dtype,
        [&]<typename T>(std::type_identity<T>) { differentiate<T>(call, p); });
}

constexpr KernelRow kRows[] = {
    {ir::kAutospDomain, "Attention", fits_forward, attention},
    {ir::kAutospDomain, "AttentionGrad", fits_backward, attention_grad, backward_workspace},
};

}  // namespace

std::span<const KernelRow> attention_rows() { return kRows; }

}  // namespace autosp::kernels
