// AttentionGrad: KV heads, each by one worker; the few that are left over when there are more
// workers than heads by all workers together, who then share out the keys and each sum a query
// gradient of their own. Who does what depends on sizes alone, so that results do not vary from run
// to run.
#include <algorithm>
#include <cmath>

#include "executor/kernels/attention/schedule.h"
#include "executor/workers.h"

namespace autosp::executor::attention {

using ir::DataType;
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
  // Where results are not plain.
  float* query_gradient;
  float* key_gradient;
  float* value_gradient;
};

struct BackwardMemory {
  RowsMemory rows;
  float* sinks;
  double* sink_terms;    // [batch][query heads]
  float* bias_gradient;  // where the result is not float32
  float* scratch;        // [workers][scratch_size]
  int64_t scratch_size;
  float* heads;  // [workers][head_size]
  int64_t head_size;
};

int64_t padded_queries(const AttentionProblem& s) { return round_up(s.queries, kQueryBlock); }

// Elements of the bias's gradient that are summed as floats first.
int64_t bias_sums(const Problem& p, const ir::Shape* gradient) {
  return gradient == nullptr || p.type == DataType::kFloat32 ? 0 : ir::num_elements(*gradient);
}

// Floats of the gradients of one KV head and one of its query heads, where results are not plain.
int64_t gradient_size(const Problem& p) {
  const bool plain = p.type == DataType::kFloat32 && p.width == p.sizes.width &&
                     p.value_width == p.sizes.value_width;
  return plain ? 0 : p.sizes.queries * p.width + p.sizes.keys * (p.width + p.value_width);
}

BackwardMemory carve(Carver& carver, const Problem& p, const ir::Shape* bias_gradient,
                     bool has_segments, int workers, const Functions& functions) {
  const AttentionProblem& s = p.sizes;
  BackwardMemory memory{};
  memory.rows = carve_rows(carver, s, has_segments, functions.panel);
  memory.sinks = carver.take<float>(s.query_heads);
  memory.sink_terms = carver.take<double>(s.batch * s.query_heads);
  memory.bias_gradient = carver.take<float>(bias_sums(p, bias_gradient));
  memory.scratch_size = round_up(functions.backward_scratch(p), 16);
  memory.scratch = carver.take<float>(memory.scratch_size * workers);
  memory.head_size =
      round_up(padded_queries(s) * (p.width + p.value_width + 3) + gradient_size(p), 16);
  memory.heads = carver.take<float>(memory.head_size * workers);
  return memory;
}

class Backward {
 public:
  Backward(const KernelCall& call, const Functions& functions)
      : call_(call),
        functions_(functions),
        workers_(*call.workers),
        p_(problem_of(reference::attention_problem(call.call, reference::kAttentionGrad),
                      call.call.operands[1].dtype)),
        s_(p_.sizes) {
    Carver carver(call.workspace);
    memory_ = carve(carver, p_, has_result(3) ? result(3).shape : nullptr,
                    s_.mask.key_segment != nullptr, workers_.count(), functions);
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
    store_bias_gradient();
    store_sink_gradient();
  }

 private:
  const reference::Operand& operand(size_t k) const { return call_.call.operands[k]; }
  const reference::Result& result(size_t k) const { return call_.call.results[k]; }
  bool has_result(size_t k) const { return k < call_.call.results.size() && call_.call.results[k]; }

  void bind_operands() {
    p_.output_gradient = array_of(operand(0));
    p_.query = array_of(operand(1));
    p_.key = array_of(operand(2));
    p_.value = array_of(operand(3));
    p_.output = array_of(operand(4));
    p_.sink = sinks_of(p_, memory_.sinks);
    const auto floats = [&](size_t k) {
      const auto* data = static_cast<const float*>(operand(k).data);
      return const_cast<float*>(data);  // NOLINT: only read here, written by the forward pass
    };
    p_.row_max = floats(5);
    p_.row_sum = floats(6);
  }

  void bind_results() {
    query_gradient_ = array_of(result(0));
    key_gradient_ = array_of(result(1));
    value_gradient_ = array_of(result(2));
    if (!has_result(3)) return;
    p_.bias_gradient =
        p_.type == DataType::kFloat32 ? static_cast<float*>(result(3).data) : memory_.bias_gradient;
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
    m.query_gradient = m.delta + queries;
    m.key_gradient = m.query_gradient + s_.queries * p_.width;
    m.value_gradient = m.key_gradient + s_.keys * p_.width;
    return m;
  }

  // Query head `group` of KV head `index`, counted over all batches.
  Head head_of(int64_t index, int64_t group, const HeadMemory& m) const {
    Head head;
    head.batch = index / s_.kv_heads;
    const int64_t kv_head = index % s_.kv_heads;
    head.head = kv_head * s_.group + group;
    head.query = m.query;
    head.output_gradient = m.output_gradient;
    head.max = m.max;
    head.inverse_sum = m.inverse_sum;
    head.delta = m.delta;
    const auto sums = [&](const Array& result, int64_t of, float* memory) {
      return result.is_plain() ? reinterpret_cast<float*>(result.at(head.batch, of, 0)) : memory;
    };
    head.query_gradient = sums(query_gradient_, head.head, m.query_gradient);
    head.key_gradient = sums(key_gradient_, kv_head, m.key_gradient);
    head.value_gradient = sums(value_gradient_, kv_head, m.value_gradient);
    head.first = group == 0;
    return head;
  }

  // Rounds what was summed elsewhere. Key and value gradients are whole after the group's last.
  void store(const Head& head) const {
    const int64_t kv_head = head.head / s_.group;
    const auto rounded = [&](const Array& result, int64_t of, const float* sums) {
      if (!result.is_plain()) functions_.store(result, head.batch, of, sums);
    };
    rounded(query_gradient_, head.head, head.query_gradient);
    if (head.head % s_.group + 1 < s_.group) return;
    rounded(key_gradient_, kv_head, head.key_gradient);
    rounded(value_gradient_, kv_head, head.value_gradient);
  }

  float* scratch(int64_t worker) const { return memory_.scratch + worker * memory_.scratch_size; }
  int64_t query_blocks() const { return p_.rows.queries / kQueryBlock; }
  int64_t key_blocks() const { return (s_.keys + kKeyBlock - 1) / kKeyBlock; }

  void visit_alone(int64_t worker, int64_t index) {
    const HeadMemory memory = head_memory(worker);
    for (int64_t group = 0; group < s_.group; ++group) {
      const Head head = head_of(index, group, memory);
      std::fill_n(head.query_gradient, s_.queries * p_.width, 0.0F);
      for (int64_t k = 0; k < query_blocks(); ++k) functions_.prepare(p_, head, k, scratch(worker));
      find_sink_term(head);
      for (int64_t k = 0; k < key_blocks(); ++k) {
        functions_.backward(p_, head, k, scratch(worker));
      }
      store(head);
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
      const int64_t row = p_.width;
      workers_.run([&](int worker) {
        std::fill_n(gradient(worker), s_.queries * row, 0.0F);
        for (int64_t k = worker; k < query_blocks(); k += workers) {
          functions_.prepare(p_, head, k, scratch(worker));
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
      store(head);
    }
  }

  void find_sink_term(const Head& head) {
    if (!has_result(4)) return;
    const double sink = p_.sink[head.head];
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
      store_float(result(4), h, static_cast<float>(-sum));
    }
  }

  void store_bias_gradient() {
    if (!has_result(3) || p_.type == DataType::kFloat32) return;
    for (int64_t k = 0; k < ir::num_elements(*result(3).shape); ++k) {
      store_float(result(3), k, p_.bias_gradient[k]);
    }
  }

  static void store_float(const reference::Result& result, int64_t at, float value) {
    switch (result.dtype) {
      case DataType::kBFloat16:
        static_cast<uint16_t*>(result.data)[at] = ir::float_to_bfloat16(value);
        return;
      case DataType::kFloat16:
        static_cast<uint16_t*>(result.data)[at] = ir::float_to_float16(value);
        return;
      default:
        static_cast<float*>(result.data)[at] = value;
    }
  }

  const KernelCall& call_;
  const Functions& functions_;
  Workers& workers_;
  Problem p_;
  const AttentionProblem& s_;
  BackwardMemory memory_{};
  Array query_gradient_;
  Array key_gradient_;
  Array value_gradient_;
};

}  // namespace

int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int workers,
                           const Functions& functions) {
  Carver carver(nullptr);
  const Problem p =
      problem_of(sizes_of(graph, node, kBackwardPositions), graph.type(node.input(1)).dtype);
  const ValueId bias_gradient = node.outputs.size() > 3 ? node.outputs[3] : ValueId();
  carve(carver, p, bias_gradient ? &graph.shape(bias_gradient) : nullptr, node.input(12).valid(),
        workers, functions);
  return carver.bytes();
}

void backward(const KernelCall& call, const Functions& functions) {
  Backward(call, functions).run();
}

}  // namespace autosp::executor::attention
