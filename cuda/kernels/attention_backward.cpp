// Query gradients by blocks of threads that take a query's row each, key and value gradients by
// blocks that take a key's.
#include "cuda/kernels/attention_backward.h"

#include "cuda/kernels/attention_inputs.h"

namespace autosp::kernels {

namespace {

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
  float weight = 0;            // after dropout
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
    const float undropped = weight;
    const float kept = in.kept(at, j);
    weight *= kept;
    if (is_dead && !in.dead_row_gradient) return;
    float dot = 0;
    const T* value = in.value + in.key_row(at, j) * in.value_width;
    for (int64_t e = 0; e < in.value_width; ++e) {
      dot += static_cast<float>(saved.output_gradient[row * in.value_width + e]) *
             static_cast<float>(value[e]);
    }
    bias_gradient = undropped * (kept * dot - delta[row]);
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
      if (s.weight[k] == 0 && s.product_gradient[k] == 0) continue;
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

int64_t query_rows(const ir::Graph& graph, const ir::Node& node) {
  const ir::Shape& query = graph.shape(node.inputs[reference::kAttentionGrad.query]);
  return query[0] * query[1] * query[2];
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

}  // namespace

// The gradient of the bias sums over what it broadcasts over: left to the host.
bool fits_backward(const ir::Graph& graph, const ir::Node& node) {
  return fits(graph, node, reference::kAttentionGrad.query) && !node.output(3);
}

int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int /*workers*/) {
  return query_rows(graph, node) * static_cast<int64_t>(sizeof(float) + sizeof(int8_t));
}

void attention_grad(const executor::KernelCall& call) {
  const AttentionProblem p = reference::attention_problem(call.call, reference::kAttentionGrad);
  visit(AttentionTypes{}, call.call.operands[0].dtype,
        [&]<typename T>(std::type_identity<T>) { differentiate<T>(call, p); });
}

}  // namespace autosp::kernels
