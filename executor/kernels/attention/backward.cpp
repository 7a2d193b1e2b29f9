// AttentionGrad: KV heads, each by one worker; the few that are left over when there are more
// workers than heads by all workers together, who then share out the keys and each sum a query
// gradient of their own. Who does what depends on sizes alone, so that results do not vary from run
// to run.
#include <algorithm>
#include <cmath>

#include "executor/kernels/attention/schedule.h"
#include "executor/workers.h"

namespace autosp::executor::attention {

using reference::AttentionProblem;

namespace {

// What one worker prepares a head in; of a head that all share, the first one's is used, and the
// others sum query gradients in theirs.
struct HeadMemory {
  float* query;  // transposed, or a query gradient
  float* output_gradient;
  float* max;
  float* inverse_sum;
  float* delta;
};

struct BackwardMemory {
  RowsMemory rows;
  float* query;  // padded copies
  float* key;
  float* value;
  float* output;
  float* output_gradient;
  float* query_gradient;  // with padded rows
  float* key_gradient;
  float* value_gradient;
  double* sink_terms;  // [batch][query heads]
  float* scratch;      // [workers][scratch_size]
  int64_t scratch_size;
  float* heads;  // [workers][head_size]
  int64_t head_size;
};

int64_t padded_queries(const AttentionProblem& s) { return round_up(s.queries, kQueryBlock); }

BackwardMemory carve(Carver& carver, const AttentionProblem& s, bool has_segments, int workers,
                     const Functions& functions) {
  BackwardMemory memory{};
  memory.rows = carve_rows(carver, s, has_segments, functions.panel);
  const auto of_queries = [&](int64_t width) {
    return carver.take<float>(padded_size(s.batch, s.query_heads, s.queries, width));
  };
  const auto of_keys = [&](int64_t width) {
    return carver.take<float>(padded_size(s.batch, s.kv_heads, s.keys, width));
  };
  memory.query = of_queries(s.width);
  memory.query_gradient = of_queries(s.width);
  memory.output = of_queries(s.value_width);
  memory.output_gradient = of_queries(s.value_width);
  memory.key = of_keys(s.width);
  memory.key_gradient = of_keys(s.width);
  memory.value = of_keys(s.value_width);
  memory.value_gradient = of_keys(s.value_width);
  memory.sink_terms = carver.take<double>(s.batch * s.query_heads);
  const Problem p = problem_of(s);
  memory.scratch_size = round_up(functions.backward_scratch(p), 16);
  memory.scratch = carver.take<float>(memory.scratch_size * workers);
  memory.head_size = padded_queries(s) * (p.width + p.value_width + 3);
  memory.heads = carver.take<float>(memory.head_size * workers);
  return memory;
}

class Backward {
 public:
  Backward(const KernelCall& call, const Functions& functions)
      : call_(call),
        functions_(functions),
        workers_(*call.workers),
        p_(problem_of(reference::attention_problem(call.call, reference::kAttentionGrad))),
        s_(p_.sizes) {
    Carver carver(call.workspace);
    memory_ = carve(carver, s_, s_.mask.key_segment != nullptr, workers_.count(), functions);
    p_.rows = fill_rows(s_, memory_.rows, functions.panel);
    bind_operands();
    bind_results();
  }

  void run() {
    const int64_t heads = s_.batch * s_.kv_heads;
    const int64_t workers = workers_.count();
    const int64_t together = can_share_keys() ? heads % workers : 0;
    const int64_t alone = can_share_heads() ? heads - together : 0;
    workers_.for_each(alone, [&](int worker, int64_t head) { visit_alone(worker, head); });
    for (int64_t head = alone; head < heads; ++head) {
      can_share_keys() ? visit_together(head) : visit_alone(0, head);
    }
    store_padded();
    store_sink_gradient();
  }

 private:
  const reference::Operand& operand(size_t k) const { return call_.call.operands[k]; }
  const reference::Result& result(size_t k) const { return call_.call.results[k]; }
  bool has_result(size_t k) const { return k < call_.call.results.size() && call_.call.results[k]; }

  void bind_operands() {
    const auto of_queries = [&](size_t k, int64_t width, float* copy) {
      return padded(dense(operand(k).data, s_.query_heads, s_.queries, width), s_.batch,
                    s_.query_heads, s_.queries, width, copy);
    };
    const auto of_keys = [&](size_t k, int64_t width, float* copy) {
      return padded(dense(operand(k).data, s_.kv_heads, s_.keys, width), s_.batch, s_.kv_heads,
                    s_.keys, width, copy);
    };
    p_.output_gradient = of_queries(0, s_.value_width, memory_.output_gradient);
    p_.query = of_queries(1, s_.width, memory_.query);
    p_.key = of_keys(2, s_.width, memory_.key);
    p_.value = of_keys(3, s_.value_width, memory_.value);
    p_.output = of_queries(4, s_.value_width, memory_.output);
    const auto floats = [&](size_t k) {
      const auto* data = static_cast<const float*>(operand(k).data);
      return const_cast<float*>(data);  // NOLINT: only read here, written by the forward pass
    };
    p_.row_max = floats(5);
    p_.row_sum = floats(6);
  }

  void bind_results() {
    const auto bind = [&](size_t k, int64_t heads, int64_t rows, int64_t width, float* wide) {
      const int64_t padded_width = round_up(width, kLanes);
      return padded_width == width ? dense(result(k).data, heads, rows, width)
                                   : dense(wide, heads, rows, padded_width);
    };
    query_gradient_ = bind(0, s_.query_heads, s_.queries, s_.width, memory_.query_gradient);
    p_.key_gradient = bind(1, s_.kv_heads, s_.keys, s_.width, memory_.key_gradient);
    p_.value_gradient = bind(2, s_.kv_heads, s_.keys, s_.value_width, memory_.value_gradient);
    if (!has_result(3)) return;
    p_.bias_gradient = static_cast<float*>(result(3).data);
    std::fill_n(p_.bias_gradient, ir::num_elements(*result(3).shape), 0.0F);
  }

  // Two workers must not add to one element of the bias's gradient.
  bool can_share_heads() const {
    const auto* strides = s_.bias.strides;
    return p_.bias_gradient == nullptr ||
           ((strides[0] != 0 || s_.batch == 1) && (strides[1] != 0 || s_.kv_heads == 1));
  }
  bool can_share_keys() const {
    return workers_.count() > 1 && (p_.bias_gradient == nullptr || s_.bias.strides[3] != 0);
  }

  HeadMemory head_memory(int64_t worker) const {
    const int64_t queries = padded_queries(s_);
    HeadMemory m{};
    m.query = memory_.heads + worker * memory_.head_size;
    m.output_gradient = m.query + queries * p_.width;
    m.max = m.output_gradient + queries * p_.value_width;
    m.inverse_sum = m.max + queries;
    m.delta = m.inverse_sum + queries;
    return m;
  }

  // Query head `group` of KV head `index`, counted over all batches.
  Head head_of(int64_t index, int64_t group, const HeadMemory& m) const {
    Head head;
    head.batch = index / s_.kv_heads;
    head.head = index % s_.kv_heads * s_.group + group;
    head.query = m.query;
    head.output_gradient = m.output_gradient;
    head.max = m.max;
    head.inverse_sum = m.inverse_sum;
    head.delta = m.delta;
    head.query_gradient = query_gradient_.at(head.batch, head.head, 0);
    head.query_gradient_row = query_gradient_.row;
    head.first = group == 0;
    return head;
  }

  float* scratch(int64_t worker) const { return memory_.scratch + worker * memory_.scratch_size; }
  int64_t query_blocks() const { return p_.rows.queries / kQueryBlock; }
  int64_t key_blocks() const { return (s_.keys + kKeyBlock - 1) / kKeyBlock; }

  void visit_alone(int64_t worker, int64_t index) {
    const HeadMemory memory = head_memory(worker);
    for (int64_t group = 0; group < s_.group; ++group) {
      const Head head = head_of(index, group, memory);
      std::fill_n(head.query_gradient, s_.queries * head.query_gradient_row, 0.0F);
      for (int64_t k = 0; k < query_blocks(); ++k) functions_.prepare(p_, head, k);
      find_sink_term(head);
      for (int64_t k = 0; k < key_blocks(); ++k) {
        functions_.backward(p_, head, k, scratch(worker));
      }
    }
  }

  void visit_together(int64_t index) {
    const int64_t workers = workers_.count();
    const HeadMemory memory = head_memory(0);
    for (int64_t group = 0; group < s_.group; ++group) {
      const Head head = head_of(index, group, memory);
      const auto gradient = [&](int64_t worker) {
        return worker == 0 ? head.query_gradient : head_memory(worker).query;
      };
      const int64_t row = head.query_gradient_row;
      workers_.run([&](int worker) {
        std::fill_n(gradient(worker), s_.queries * row, 0.0F);
        for (int64_t k = worker; k < query_blocks(); k += workers) {
          functions_.prepare(p_, head, k);
        }
      });
      find_sink_term(head);
      workers_.run([&](int worker) {
        Head own = head;
        own.query_gradient = gradient(worker);
        // There and back again, as under a causal mask early keys take longest.
        for (int64_t round = 0; round * workers < key_blocks(); ++round) {
          const int64_t turn = round % 2 == 0 ? worker : workers - 1 - worker;
          const int64_t block = round * workers + turn;
          if (block < key_blocks()) functions_.backward(p_, own, block, scratch(worker));
        }
      });
      workers_.run([&](int worker) {
        const int64_t begin = s_.queries * worker / workers * row;
        const int64_t end = s_.queries * (worker + 1) / workers * row;
        for (int64_t other = 1; other < workers; ++other) {
          const float* from = gradient(other);
          for (int64_t i = begin; i < end; ++i) head.query_gradient[i] += from[i];
        }
      });
    }
  }

  void find_sink_term(const Head& head) {
    if (!has_result(4)) return;
    const double sink = static_cast<const float*>(s_.sink)[head.head];
    double sum = 0;
    for (int64_t i = 0; i < s_.queries; ++i) {
      const double weight = std::exp(sink - static_cast<double>(head.max[i])) *
                            static_cast<double>(head.inverse_sum[i]);
      sum += weight * static_cast<double>(head.delta[i]);
    }
    memory_.sink_terms[head.batch * s_.query_heads + head.head] = sum;
  }

  void store_sink_gradient() {
    if (!has_result(4)) return;
    for (int64_t h = 0; h < s_.query_heads; ++h) {
      double sum = 0;
      for (int64_t b = 0; b < s_.batch; ++b) sum += memory_.sink_terms[b * s_.query_heads + h];
      static_cast<float*>(result(4).data)[h] = static_cast<float>(-sum);
    }
  }

  // Gradients that were summed in padded rows.
  void store_padded() {
    const auto store = [&](const Matrix& from, size_t k, int64_t rows, int64_t width) {
      if (from.row == width) return;
      auto* to = static_cast<float*>(result(k).data);
      for (int64_t r = 0; r < rows; ++r)
        std::copy_n(from.data + r * from.row, width, to + r * width);
    };
    const int64_t key_rows = s_.batch * s_.kv_heads * s_.keys;
    store(query_gradient_, 0, s_.batch * s_.query_heads * s_.queries, s_.width);
    store(p_.key_gradient, 1, key_rows, s_.width);
    store(p_.value_gradient, 2, key_rows, s_.value_width);
  }

  const KernelCall& call_;
  const Functions& functions_;
  Workers& workers_;
  Problem p_;
  const AttentionProblem& s_;
  BackwardMemory memory_{};
  Matrix query_gradient_;
};

}  // namespace

int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int workers,
                           const Functions& functions) {
  Carver carver(nullptr);
  carve(carver, sizes_of(graph, node, kBackwardPositions), node.input(12).valid(), workers,
        functions);
  return carver.bytes();
}

void backward(const KernelCall& call, const Functions& functions) {
  Backward(call, functions).run();
}

}  // namespace autosp::executor::attention
