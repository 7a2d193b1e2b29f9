// Attention and its gradient (docs/attention.md) for what cuDNN does not take: any masks, bias,
// softcap, sinks and head widths. A block of threads takes a query's row (forward, query gradient)
// or a key's (key and value gradients) and walks over the other side kLanes at a time, so that
// scores exist for one row and kLanes columns. Sums are kept in float, in a fixed order.
#include "cuda/kernels/attention_backward.h"
#include "cuda/kernels/attention_inputs.h"
#include "cuda/kernels/rows.h"

namespace autosp::kernels {

namespace {

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
      // In the second of these phases nobody else reads weights any more.
      if (phase == kSumTree + 2 && j < in.keys) s.weight[lane] *= in.kept(at, j);
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
        value += weight * in.kept(at, j) *
                 static_cast<float>(in.value[in.key_row(at, j) * in.value_width + e]);
      }
      output[row * in.value_width + e] = T(value);
    }
    if (lane != 0) return;
    if (maxima != nullptr) maxima[row] = fixed ? kLowest : s.max;
    if (sums != nullptr) sums[row] = fixed ? 0.0F : s.sum;
  }
};

bool fits_forward(const ir::Graph& graph, const ir::Node& node) {
  return fits(graph, node, reference::kAttention.query);
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

constexpr KernelRow kRows[] = {
    {ir::kAutospDomain, "Attention", fits_forward, attention},
    {ir::kAutospDomain, "AttentionGrad", fits_backward, attention_grad, backward_workspace},
};

}  // namespace

std::span<const KernelRow> attention_rows() { return kRows; }

}  // namespace autosp::kernels
