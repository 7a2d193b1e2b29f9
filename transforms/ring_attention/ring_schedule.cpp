#include "transforms/ring_attention/ring_schedule.h"

#include <algorithm>

#include "ir/operator_traits.h"
#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

using shard::Interval;

namespace {

// Of the busiest member's keys, what zigzag order has to save.
constexpr double kLeastSaving = 0.1;

int64_t keys_seen_by_busiest(const std::vector<Interval>& intervals, const TokenOrder& queries) {
  const auto rows = static_cast<size_t>(queries.extent());
  int64_t most = 0;
  for (size_t member = 0; member < queries.members(); ++member) {
    int64_t seen = 0;
    for (size_t first = 0; first < intervals.size(); first += rows) {
      for (const Interval& positions : queries.of(member)) {
        for (int64_t query = positions.begin; query < positions.end; ++query) {
          const Interval& keys = intervals[first + static_cast<size_t>(query)];
          seen += std::max<int64_t>(keys.extent(), 0);
        }
      }
    }
    most = std::max(most, seen);
  }
  return most;
}

std::string why_no_zigzag(const std::vector<Interval>& intervals, const TokenOrder& in_blocks,
                          const TokenOrder& in_zigzag) {
  if (intervals.empty()) return "no causal mask or window is known";
  const auto before = static_cast<double>(keys_seen_by_busiest(intervals, in_blocks));
  const auto after = static_cast<double>(keys_seen_by_busiest(intervals, in_zigzag));
  const bool saves = after < (1 - kLeastSaving) * before;
  return saves ? "" : "it would not save the busiest member a tenth of its keys";
}

}  // namespace

RingSchedule::RingSchedule(const std::vector<Interval>& intervals,
                           const std::vector<Interval>& key_blocks,
                           const std::vector<Interval>& query_blocks, std::string why_in_blocks)
    : keys_(TokenOrder::in_blocks(key_blocks)),
      queries_(TokenOrder::in_blocks(query_blocks)),
      why_in_blocks_(std::move(why_in_blocks)) {
  if (why_in_blocks_.empty()) {
    TokenOrder zigzag = TokenOrder::in_zigzag(query_blocks);
    why_in_blocks_ = why_no_zigzag(intervals, queries_, zigzag);
    if (why_in_blocks_.empty()) {
      queries_ = std::move(zigzag);
      keys_ = TokenOrder::in_zigzag(key_blocks);
    }
  }
  find_attended(intervals);
}

// Every member attends to its own block, whatever is seen of it.
void RingSchedule::find_attended(const std::vector<Interval>& intervals) {
  // The keys that any of the queries sees, and what lies between them.
  const auto keys_seen_by = [&](const Interval& queries) {
    if (intervals.empty()) return Interval{0, keys_.extent()};
    Interval seen{keys_.extent(), 0};
    const auto rows = static_cast<size_t>(queries_.extent());
    for (size_t first = 0; first < intervals.size(); first += rows) {
      for (int64_t query = queries.begin; query < queries.end; ++query) {
        const Interval& row = intervals[first + static_cast<size_t>(query)];
        if (row.extent() <= 0) continue;
        seen = {std::min(seen.begin, row.begin), std::max(seen.end, row.end)};
      }
    }
    return seen;
  };
  attends_.assign(members(), std::vector<bool>(members(), false));
  for (size_t member = 0; member < members(); ++member) {
    std::vector<Interval> seen;
    for (const Interval& queries : queries_.of(member)) seen.push_back(keys_seen_by(queries));
    const auto sees = [&](const Interval& keys) {
      return std::ranges::any_of(seen, [&](const Interval& interval) {
        return std::max(interval.begin, keys.begin) < std::min(interval.end, keys.end);
      });
    };
    for (size_t step = 0; step < members(); ++step) {
      if (step > 0 && std::ranges::none_of(keys_.of(owner(member, step)), sees)) continue;
      attends_[member][step] = true;
      steps_ = std::max(steps_, step + 1);
    }
  }
}

bool RingSchedule::holds(size_t member, size_t step) const {
  const size_t block = owner(member, step);
  for (size_t later = step; later < steps_; ++later) {
    if (attends(next(block, later), later)) return true;
  }
  return false;
}

namespace {

// One mask for all samples, or one for each, after one another. What is computed during the run may
// be anything.
std::vector<Interval> known_intervals(const ir::Graph& graph, ValueId begin, ValueId end,
                                      int64_t keys) {
  const auto begins = graph.constant_ints(begin);
  const auto ends = graph.constant_ints(end);
  const size_t rows = std::max(begins ? begins->size() : 0, ends ? ends->size() : 0);
  std::vector<Interval> intervals;
  for (size_t row = 0; row < rows; ++row) {
    const int64_t from = begins ? (*begins)[row % begins->size()] : 0;
    const int64_t to = ends ? (*ends)[row % ends->size()] : keys;
    intervals.push_back({std::max<int64_t>(from, 0), std::min(to, keys)});
  }
  return intervals;
}

std::string why_zigzag_is_out_of_question(const SpmdProgram& program, const ir::Node& node) {
  if (!program.plan->zigzag_asked) return "nobody asks for another order";
  if (ir::drops_weights(node))
    return "its weights are dropped at random, by numbers that follow each other";
  return "";
}

std::vector<int64_t> ends_of(const std::vector<Interval>& blocks) {
  std::vector<int64_t> ends;
  for (const Interval& block : blocks) ends.push_back(block.end);
  return ends;
}

}  // namespace

std::shared_ptr<const RingSchedule> RingSchedules::of(const SpmdProgram& program,
                                                      const Compute& compute) {
  const ir::Graph& graph = program.graph();
  const ir::Node& node = graph.node(compute.node);
  const shard::AttentionOperands at = *shard::attention_operands(node);
  // Positions follow from the place along axis r alone: inside attention the other axes split heads
  // and batches.
  std::vector<Interval> keys;
  std::vector<Interval> queries;
  for (int64_t rank : group_of(0, {program.plan->axis_named("r")}, program.plan->mesh)) {
    keys.push_back(input_slice(program, program.at(compute.operands[at.key]), rank)[2]);
    queries.push_back(input_slice(program, program.at(compute.operands[at.query]), rank)[2]);
  }
  const std::string why = why_zigzag_is_out_of_question(program, node);
  const ValueId begin = node.input(at.begin);
  const ValueId end = node.input(at.end);

  const std::scoped_lock lock(mutex_);
  auto& schedule = known_[{begin, end, ends_of(keys), ends_of(queries), why}];
  if (!schedule) {
    const int64_t extent = graph.shape(node.inputs[at.key])[2];
    schedule = std::make_shared<RingSchedule>(known_intervals(graph, begin, end, extent), keys,
                                              queries, why);
  }
  return schedule;
}

}  // namespace autosp::transforms
