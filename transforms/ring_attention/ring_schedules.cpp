#include "transforms/ring_attention/ring_schedules.h"

#include <algorithm>

#include "base/error.h"
#include "ir/operator_traits.h"
#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

using shard::Interval;

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

  AUTOSP_CHECK(plan_ == nullptr || plan_ == program.plan);
  plan_ = program.plan;
  auto& schedule = known_[{begin, end, ends_of(keys), ends_of(queries), ir::drops_weights(node)}];
  if (!schedule) {
    const int64_t extent = graph.shape(node.inputs[at.key])[2];
    schedule = std::make_shared<RingSchedule>(known_intervals(graph, begin, end, extent), keys,
                                              queries, why);
  }
  return schedule;
}

}  // namespace autosp::transforms
