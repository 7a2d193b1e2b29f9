#include "transforms/ring_attention/ring_schedule.h"

#include <algorithm>
#include <numeric>

namespace autosp::transforms {

using shard::Interval;

namespace {

// Of the busiest member's keys, what zigzag order has to save.
constexpr double kLeastSaving = 0.1;

// By member.
std::vector<int64_t> keys_seen(const std::vector<Interval>& intervals, const TokenOrder& queries) {
  const auto rows = static_cast<size_t>(queries.extent());
  std::vector<int64_t> seen(queries.members());
  for (size_t member = 0; member < queries.members(); ++member) {
    for (size_t first = 0; first < intervals.size(); first += rows) {
      for (const Interval& positions : queries.of(member)) {
        for (int64_t query = positions.begin; query < positions.end; ++query) {
          const Interval& keys = intervals[first + static_cast<size_t>(query)];
          seen[member] += std::max<int64_t>(keys.extent(), 0);
        }
      }
    }
  }
  return seen;
}

// Of the most and of all; 1 where nothing is seen.
double over_mean(const std::vector<int64_t>& seen) {
  const auto all = static_cast<double>(std::accumulate(seen.begin(), seen.end(), int64_t{0}));
  const auto most = static_cast<double>(std::ranges::max(seen));
  return all > 0 ? most * static_cast<double>(seen.size()) / all : 1;
}

}  // namespace

RingSchedule::RingSchedule(const std::vector<Interval>& intervals,
                           const std::vector<Interval>& key_blocks,
                           const std::vector<Interval>& query_blocks, std::string why_in_blocks)
    : keys_(TokenOrder::in_blocks(key_blocks)),
      queries_(TokenOrder::in_blocks(query_blocks)),
      why_in_blocks_(std::move(why_in_blocks)) {
  busiest_over_mean_ = over_mean(keys_seen(intervals, queries_));
  if (why_in_blocks_.empty()) choose_order(intervals, key_blocks, query_blocks);
  find_attended(intervals);
}

void RingSchedule::choose_order(const std::vector<Interval>& intervals,
                                const std::vector<Interval>& key_blocks,
                                const std::vector<Interval>& query_blocks) {
  TokenOrder zigzag = TokenOrder::in_zigzag(query_blocks);
  const double in_zigzag = over_mean(keys_seen(intervals, zigzag));
  if (intervals.empty()) {
    why_in_blocks_ = "no causal mask or window is known";
  } else if (!(in_zigzag < (1 - kLeastSaving) * busiest_over_mean_)) {
    why_in_blocks_ = "it would not save the busiest member a tenth of its keys";
  } else {
    queries_ = std::move(zigzag);
    keys_ = TokenOrder::in_zigzag(key_blocks);
    busiest_over_mean_ = in_zigzag;
  }
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

}  // namespace autosp::transforms
