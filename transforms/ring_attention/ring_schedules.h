// The schedules of a program's rings. Layers that attend alike share one: a schedule looks at every
// query, and rings are asked about by each pass and for each rank.
#pragma once

#include <compare>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "transforms/ring_attention/ring_schedule.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

class RingSchedules {
 public:
  // `compute` is on a ring in the program's plan; all programs are of one plan.
  std::shared_ptr<const RingSchedule> of(const SpmdProgram& program, const Compute& compute);

 private:
  // Values of the bounds of intervals, ends of the blocks of keys and of queries, and whether
  // weights are dropped.
  using Key = std::tuple<ValueId, ValueId, std::vector<int64_t>, std::vector<int64_t>, bool>;
  const shard::Plan* plan_ = nullptr;
  std::map<Key, std::shared_ptr<const RingSchedule>> known_;
};

}  // namespace autosp::transforms
