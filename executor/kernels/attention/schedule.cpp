#include "executor/kernels/attention/schedule.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "ir/operator_traits.h"

namespace autosp::executor::attention {

using ir::DataType;
using reference::AttentionProblem;
using reference::DeadRows;

namespace {

int64_t num_blocks(int64_t queries) { return (queries + kQueryBlock - 1) / kQueryBlock; }

// Segment ids may be anything; only their equality counts. The n-th smallest key segment is n.
class SegmentNumbers {
 public:
  explicit SegmentNumbers(const AttentionProblem& sizes) {
    const auto& mask = sizes.mask;
    for (int64_t b = 0; b < sizes.batch; ++b) {
      const int64_t* from = mask.key_segment + b * mask.key_segment_stride;
      ids_.insert(ids_.end(), from, from + sizes.keys);
      if (mask.key_segment_stride == 0) break;
    }
    std::ranges::sort(ids_);
    ids_.erase(std::ranges::unique(ids_).begin(), ids_.end());
  }

  // -1 for one that no key has.
  float number(int64_t id) const {
    const auto found = std::ranges::lower_bound(ids_, id);
    if (found == ids_.end() || *found != id) return -1;
    return static_cast<float>(found - ids_.begin());
  }

 private:
  std::vector<int64_t> ids_;
};

// The keys of a batch that the key mask leaves, by segment.
class VisibleKeys {
 public:
  using Range = reference::AttentionMask::Range;

  VisibleKeys(const reference::AttentionMask& mask, int64_t batch) : mask_(mask), batch_(batch) {
    if (mask.intervals_only()) return;
    for (int64_t k = 0; k < mask.num_keys; ++k) {
      if (mask.key != nullptr && !mask.key[batch * mask.key_stride + k]) continue;
      keys_.emplace_back(
          mask.key_segment == nullptr ? 0 : mask.key_segment[batch * mask.key_segment_stride + k],
          k);
    }
    std::ranges::sort(keys_);
  }

  // From the first to the last key that the query sees; empty when it sees none.
  Range range(int64_t query) const {
    const Range interval = mask_.range(batch_, query);
    if (mask_.intervals_only()) return interval;
    const int64_t segment = mask_.query_segment == nullptr
                                ? 0
                                : mask_.query_segment[batch_ * mask_.query_segment_stride + query];
    const auto first = std::ranges::lower_bound(keys_, std::pair(segment, interval.begin));
    const auto end = std::ranges::lower_bound(keys_, std::pair(segment, interval.end));
    if (first == end) return {interval.begin, interval.begin};
    return {first->second, std::prev(end)->second + 1};
  }

 private:
  const reference::AttentionMask& mask_;
  int64_t batch_;
  std::vector<std::pair<int64_t, int64_t>> keys_;  // segment and key, sorted
};

RowKind kind_of(const AttentionProblem& sizes, const VisibleKeys::Range& seen) {
  if (seen.begin != seen.end || sizes.sink != nullptr) return RowKind::kNormal;
  switch (sizes.dead_rows) {
    case DeadRows::kUniform:
      return RowKind::kUniform;
    case DeadRows::kUnmasked:
      return RowKind::kUnmasked;
    case DeadRows::kNan:
      return RowKind::kNan;
    default:
      return RowKind::kEmpty;
  }
}

Panel panel_of(const float* begin, const float* end, const RowKind* kind, int64_t count) {
  Panel panel{std::numeric_limits<int32_t>::max(), 0, 0, std::numeric_limits<int32_t>::max(),
              false};
  for (int64_t i = 0; i < count; ++i) {
    const auto first = static_cast<int32_t>(begin[i]);
    const auto last = static_cast<int32_t>(end[i]);
    panel.full_begin = std::max(panel.full_begin, first);
    panel.full_end = std::min(panel.full_end, last);
    panel.special = panel.special || kind[i] >= RowKind::kUniform;
    if (first >= last) continue;
    panel.begin = std::min(panel.begin, first);
    panel.end = std::max(panel.end, last);
  }
  if (panel.begin >= panel.end) panel.begin = panel.end = 0;
  return panel;
}

void fill_segments(const AttentionProblem& sizes, const RowsMemory& memory, int64_t queries) {
  const SegmentNumbers numbers(sizes);
  const auto& mask = sizes.mask;
  for (int64_t b = 0; b < sizes.batch; ++b) {
    for (int64_t i = 0; i < queries; ++i) {
      memory.query_segment[b * queries + i] =
          i < sizes.queries ? numbers.number(mask.query_segment[b * mask.query_segment_stride + i])
                            : -1;
    }
    for (int64_t j = 0; j < sizes.keys; ++j) {
      memory.key_segment[b * sizes.keys + j] =
          numbers.number(mask.key_segment[b * mask.key_segment_stride + j]);
    }
  }
}

}  // namespace

AttentionProblem sizes_of(const ir::Graph& graph, const ir::Node& node,
                          const Positions& positions) {
  const ir::Shape& query = graph.shape(node.inputs[positions.query]);
  const ir::Shape& key = graph.shape(node.inputs[positions.query + 1]);
  const ir::Shape& value = graph.shape(node.inputs[positions.query + 2]);
  AttentionProblem sizes;
  sizes.batch = query[0];
  sizes.query_heads = query[1];
  sizes.kv_heads = key[1];
  sizes.queries = query[2];
  sizes.keys = key[2];
  sizes.width = query[3];
  sizes.value_width = value[3];
  sizes.softcap = node.attributes.get_float("softcap", 0);
  return sizes;
}

Problem problem_of(const AttentionProblem& sizes, DataType type) {
  Problem p;
  p.sizes = sizes;
  p.type = type;
  p.width = round_up(sizes.width, kLanes);
  p.value_width = round_up(sizes.value_width, kLanes);
  return p;
}

bool accepts(const ir::Graph& graph, const ir::Node& node) {
  constexpr int64_t kExactInFloat = int64_t{1} << 24;
  const Positions& positions = node.op == "Attention" ? kForwardPositions : kBackwardPositions;
  const DataType own = graph.type(node.inputs[positions.query]).dtype;
  if (element_size(own) > sizeof(float)) return false;
  const auto fit = [&](const std::vector<ValueId>& values, size_t statistics) {
    for (size_t k = 0; k < values.size(); ++k) {
      if (!values[k]) continue;
      const ir::Type& type = graph.type(values[k]);
      const bool is_statistic = k == statistics || k == statistics + 1;
      if (type.num_elements() == 0) return false;
      if (ir::is_floating(type.dtype) && type.dtype != (is_statistic ? DataType::kFloat32 : own)) {
        return false;
      }
    }
    return true;
  };
  constexpr size_t kNone = std::numeric_limits<size_t>::max() / 2;
  const bool forward = node.op == "Attention";
  if (!fit(node.inputs, forward ? kNone : 5) || !fit(node.outputs, forward ? 1 : kNone)) {
    return false;
  }
  const AttentionProblem sizes = sizes_of(graph, node, positions);
  return std::max(sizes.keys, sizes.queries) < kExactInFloat;
}

RowsMemory carve_rows(Carver& carver, const AttentionProblem& sizes, bool has_segments, int panel) {
  const int64_t queries = sizes.batch * num_blocks(sizes.queries) * kQueryBlock;
  RowsMemory memory{};
  memory.begin = carver.take<float>(queries);
  memory.end = carver.take<float>(queries);
  memory.kind = carver.take<RowKind>(queries);
  memory.panels = carver.take<Panel>(queries / panel);
  if (has_segments) {
    memory.query_segment = carver.take<float>(queries);
    memory.key_segment = carver.take<float>(sizes.batch * sizes.keys);
  }
  return memory;
}

Rows fill_rows(const AttentionProblem& sizes, const RowsMemory& memory, int panel) {
  Rows rows{memory.begin,
            memory.end,
            memory.kind,
            memory.query_segment,
            memory.key_segment,
            memory.panels,
            num_blocks(sizes.queries) * kQueryBlock,
            num_blocks(sizes.queries) * (kQueryBlock / panel)};
  for (int64_t b = 0; b < sizes.batch; ++b) {
    const int64_t first = b * rows.queries;
    const VisibleKeys keys(sizes.mask, b);
    for (int64_t i = 0; i < rows.queries; ++i) {
      const bool filling = i >= sizes.queries;
      auto range = filling ? VisibleKeys::Range{} : keys.range(i);
      const RowKind kind = filling ? RowKind::kEmpty : kind_of(sizes, range);
      if (kind == RowKind::kEmpty) range = {0, 0};
      if (kind >= RowKind::kUniform) range = {0, sizes.keys};
      memory.kind[first + i] = kind;
      memory.begin[first + i] = static_cast<float>(range.begin);
      memory.end[first + i] = static_cast<float>(range.end);
    }
    for (int64_t c = 0; c < rows.num_panels; ++c) {
      const int64_t at = first + c * panel;
      const int64_t count = std::clamp<int64_t>(sizes.queries - c * panel, 0, panel);
      memory.panels[b * rows.num_panels + c] =
          panel_of(memory.begin + at, memory.end + at, memory.kind + at, count);
    }
  }
  if (memory.key_segment != nullptr) fill_segments(sizes, memory, rows.queries);
  return rows;
}

Array array_of(const reference::Operand& operand) {
  const ir::Shape& shape = *operand.shape;
  // Whoever passes operands only reads.
  auto* data = const_cast<std::byte*>(static_cast<const std::byte*>(operand.data));  // NOLINT
  return {data, operand.dtype, shape[1], shape[2], shape[3]};
}

Array array_of(const reference::Result& result) {
  const ir::Shape& shape = *result.shape;
  return {static_cast<std::byte*>(result.data), result.dtype, shape[1], shape[2], shape[3]};
}

const float* sinks_of(const Problem& problem, float* memory) {
  const void* sink = problem.sizes.sink;
  if (sink == nullptr || problem.type == DataType::kFloat32) return static_cast<const float*>(sink);
  const auto* bits = static_cast<const uint16_t*>(sink);
  const auto widen =
      problem.type == DataType::kBFloat16 ? ir::bfloat16_to_float : ir::float16_to_float;
  std::transform(bits, bits + problem.sizes.query_heads, memory, widen);
  return memory;
}

namespace {

// AMX multiplies weights as they leave the exponential; dropout comes between.
const Functions& functions_for(const ir::Node& node, DataType type) {
  return best_functions(ir::drops_weights(node) ? DataType::kFloat32 : type);
}

}  // namespace

const Functions& functions_for(const ir::Graph& graph, const ir::Node& node) {
  const Positions& positions = node.op == "Attention" ? kForwardPositions : kBackwardPositions;
  return functions_for(node, graph.type(node.inputs[positions.query]).dtype);
}

const Functions& functions_for(const KernelCall& call) {
  return functions_for(call.call.node, call.call.operands[0].dtype);
}

}  // namespace autosp::executor::attention
