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

class PeakReader {
 public:
  explicit PeakReader(const Program& program) : program_(program), graph_(program.graph()) {
    is_output_.assign(program.buffers().size(), false);
    for (const ir::Output& output : graph_.outputs()) {
      const Place& place = program.place(output.value);
      if (place.storage == Storage::kArena) is_output_[static_cast<size_t>(place.buffer)] = true;
    }
    find_peak();
  }

  MemoryBuckets read() {
    MemoryBuckets bytes{};
    const std::vector<const ir::Node*> writers = last_writers();
    int64_t live = 0;
    for (size_t b = 0; b < program_.buffers().size(); ++b) {
      const ArenaBuffer& buffer = program_.buffers()[b];
      if (buffer.first > peak_ || buffer.last < peak_) continue;
      bytes[static_cast<size_t>(bucket_of(b, writers[b]))] += buffer.size;
      live += buffer.size;
    }
    bytes[static_cast<size_t>(Bucket::kGaps)] = program_.memory().arena - live;
    return bytes;
  }

 private:
  void find_peak() {
    std::vector<int64_t> change(graph_.nodes().size() + 2, 0);
    for (const ArenaBuffer& buffer : program_.buffers()) {
      change[static_cast<size_t>(buffer.first)] += buffer.size;
      change[static_cast<size_t>(buffer.last) + 1] -= buffer.size;
    }
    std::partial_sum(change.begin(), change.end(), change.begin());
    peak_ = static_cast<int>(std::ranges::max_element(change) - change.begin());
  }

  // The node that has written to each buffer last, at the peak; null for scratch memory.
  std::vector<const ir::Node*> last_writers() const {
    std::vector<const ir::Node*> writers(program_.buffers().size(), nullptr);
    const size_t count = std::min(graph_.nodes().size(), static_cast<size_t>(peak_) + 1);
    for (size_t step = 0; step < count; ++step) {
      if (program_.is_view(step)) continue;
      const ir::Node& node = graph_.nodes()[step];
      for (ValueId result : node.outputs) {
        if (result) writers[static_cast<size_t>(program_.place(result).buffer)] = &node;
      }
    }
    return writers;
  }

  Bucket bucket_of(size_t b, const ir::Node* writer) const {
    if (writer == nullptr) {
      const bool attention = static_cast<size_t>(peak_) < graph_.nodes().size() &&
                             is_attention(graph_.nodes()[static_cast<size_t>(peak_)]);
      return attention ? Bucket::kAttentionTemporaries : Bucket::kTemporaries;
    }
    if (is_output_[b]) return Bucket::kOutputs;
    if (writer->phase == "recompute") return Bucket::kRecomputed;
    if (writer->phase == "forward" && is_read_backward(b)) return Bucket::kKeptActivations;
    return ir::is_collective(*writer) ? Bucket::kCommunication : Bucket::kTemporaries;
  }

  bool is_read_backward(size_t b) const {
    const auto last = static_cast<size_t>(program_.buffers()[b].last);
    return last >= graph_.nodes().size() || graph_.nodes()[last].phase != "forward";
  }

  const Program& program_;
  const ir::Graph& graph_;
  std::vector<bool> is_output_;  // by buffer
  int peak_ = 0;                 // a step
};

}  // namespace

MemoryBuckets memory_at_peak(const Program& program,
                             const std::vector<bool>& is_parameter_by_input) {
  MemoryBuckets bytes = PeakReader(program).read();
  const ir::Graph& graph = program.graph();
  for (size_t k = 0; k < graph.inputs().size(); ++k) {
    const Bucket bucket = is_parameter_by_input[k] ? Bucket::kParameters : Bucket::kInputs;
    bytes[static_cast<size_t>(bucket)] += graph.type(graph.inputs()[k]).num_bytes();
  }
  bytes[static_cast<size_t>(Bucket::kInputs)] += program.memory().constants;
  bytes[static_cast<size_t>(Bucket::kParameters)] += program.memory().external;
  return bytes;
}

}  // namespace autosp::executor
