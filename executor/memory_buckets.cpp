#include "executor/memory_buckets.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "ir/operator_traits.h"

namespace autosp::executor {

std::string_view name_of(Bucket bucket) {
  constexpr std::array<std::string_view, kBuckets> kNames = {"parameters",
                                                             "inputs",
                                                             "gradients and loss",
                                                             "kept activations",
                                                             "recomputed values",
                                                             "attention temporaries",
                                                             "communication buffers",
                                                             "temporaries",
                                                             "gaps"};
  return kNames[static_cast<size_t>(bucket)];
}

namespace {

bool is_attention(const ir::Node& node) { return node.op.find("Attention") != std::string::npos; }

// The bytes of every bucket while each step runs, and after the last one.
class BucketReader {
 public:
  explicit BucketReader(const Program& program)
      : program_(program), graph_(program.graph()), steps_(graph_.nodes().size() + 2) {
    is_output_.assign(program.buffers().size(), false);
    for (const ir::Output& output : graph_.outputs()) {
      const Place& place = program.place(output.value);
      if (place.storage == Storage::kArena) is_output_[static_cast<size_t>(place.buffer)] = true;
    }
  }

  std::vector<MemoryBuckets> read() {
    const std::vector<std::vector<int>> writes = writing_steps();
    for (size_t b = 0; b < program_.buffers().size(); ++b) add_buffer(b, writes[b]);
    sum_up();
    steps_.pop_back();
    return std::move(steps_);
  }

 private:
  // By buffer: the steps that write a result into it, in order; none for scratch memory.
  std::vector<std::vector<int>> writing_steps() const {
    std::vector<std::vector<int>> writes(program_.buffers().size());
    for (size_t step = 0; step < graph_.nodes().size(); ++step) {
      if (program_.is_view(step)) continue;
      for (ValueId result : graph_.nodes()[step].outputs) {
        if (!result) continue;
        writes[static_cast<size_t>(program_.place(result).buffer)].push_back(
            static_cast<int>(step));
      }
    }
    return writes;
  }

  // What a buffer holds changes with every result that is written over the one before.
  void add_buffer(size_t b, const std::vector<int>& writes) {
    const ArenaBuffer& buffer = program_.buffers()[b];
    if (writes.empty()) return add(scratch_bucket(buffer.first), buffer, buffer.first, buffer.last);
    for (size_t k = 0; k < writes.size(); ++k) {
      const int last = k + 1 < writes.size() ? writes[k + 1] - 1 : buffer.last;
      add(bucket_of(b, node(writes[k])), buffer, writes[k], last);
    }
  }

  void add(Bucket bucket, const ArenaBuffer& buffer, int first, int last) {
    steps_[static_cast<size_t>(first)][static_cast<size_t>(bucket)] += buffer.size;
    steps_[static_cast<size_t>(last) + 1][static_cast<size_t>(bucket)] -= buffer.size;
  }

  // From changes to bytes; what is left of the arena are gaps.
  void sum_up() {
    for (size_t step = 0; step < steps_.size(); ++step) {
      if (step > 0) {
        for (size_t k = 0; k < kBuckets; ++k) steps_[step][k] += steps_[step - 1][k];
      }
    }
    for (MemoryBuckets& bytes : steps_) {
      const int64_t live = std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
      bytes[static_cast<size_t>(Bucket::kGaps)] = program_.memory().arena - live;
    }
  }

  const ir::Node& node(int step) const { return graph_.nodes()[static_cast<size_t>(step)]; }

  Bucket scratch_bucket(int step) const {
    return is_attention(node(step)) ? Bucket::kAttentionTemporaries : Bucket::kTemporaries;
  }

  Bucket bucket_of(size_t b, const ir::Node& writer) const {
    if (is_output_[b]) return Bucket::kOutputs;
    if (writer.phase == "recompute") return Bucket::kRecomputed;
    if (writer.phase == "forward" && is_read_backward(b)) return Bucket::kKeptActivations;
    return ir::is_collective(writer) ? Bucket::kCommunication : Bucket::kTemporaries;
  }

  bool is_read_backward(size_t b) const {
    const auto last = static_cast<size_t>(program_.buffers()[b].last);
    return last >= graph_.nodes().size() || graph_.nodes()[last].phase != "forward";
  }

  const Program& program_;
  const ir::Graph& graph_;
  std::vector<MemoryBuckets> steps_;
  std::vector<bool> is_output_;  // by buffer
};

}  // namespace

std::vector<MemoryBuckets> memory_by_step(const Program& program,
                                          const std::vector<bool>& is_parameter_by_input) {
  MemoryBuckets outside{};
  const ir::Graph& graph = program.graph();
  for (size_t k = 0; k < graph.inputs().size(); ++k) {
    const Bucket bucket = is_parameter_by_input[k] ? Bucket::kParameters : Bucket::kInputs;
    outside[static_cast<size_t>(bucket)] += graph.type(graph.inputs()[k]).num_bytes();
  }
  outside[static_cast<size_t>(Bucket::kInputs)] += program.memory().constants;
  outside[static_cast<size_t>(Bucket::kParameters)] += program.memory().external;
  std::vector<MemoryBuckets> steps = BucketReader(program).read();
  for (MemoryBuckets& bytes : steps) {
    for (size_t k = 0; k < kBuckets; ++k) bytes[k] += outside[k];
  }
  return steps;
}

MemoryBuckets memory_at_peak(const Program& program,
                             const std::vector<bool>& is_parameter_by_input) {
  // Where most is live, the gaps are smallest.
  return std::ranges::min(
      memory_by_step(program, is_parameter_by_input), {},
      [](const MemoryBuckets& bytes) { return bytes[static_cast<size_t>(Bucket::kGaps)]; });
}

}  // namespace autosp::executor
