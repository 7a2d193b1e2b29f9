#include "transforms/ring_attention/token_order.h"

#include <algorithm>

#include "base/error.h"

namespace autosp::transforms {

using shard::Interval;

namespace {

// `positions` end where `interval` begins, or before.
void append(const Interval& interval, Positions& positions) {
  if (interval.extent() == 0) return;
  if (!positions.empty() && positions.back().end == interval.begin) {
    positions.back().end = interval.end;
  } else {
    positions.push_back(interval);
  }
}

}  // namespace

int64_t count(const Positions& positions) {
  int64_t total = 0;
  for (const Interval& interval : positions) total += interval.extent();
  return total;
}

int64_t count_below(const Positions& positions, int64_t bound) {
  int64_t total = 0;
  for (const Interval& interval : positions)
    total += std::clamp(bound, interval.begin, interval.end) - interval.begin;
  return total;
}

TokenOrder TokenOrder::in_blocks(std::vector<Interval> blocks) {
  TokenOrder order;
  int64_t begin = 0;
  for (const Interval& block : blocks) {
    AUTOSP_CHECK(block.extent() > 0, "a member without positions");
    AUTOSP_CHECK(block.begin == begin, "blocks that are not one after the other");
    begin = block.end;
    order.positions_.push_back({block});
  }
  order.blocks_ = std::move(blocks);
  return order;
}

TokenOrder TokenOrder::in_zigzag(std::vector<Interval> blocks) {
  std::vector<Interval> halves;
  for (const Interval& block : blocks) {
    const int64_t middle = block.begin + (block.extent() + 1) / 2;
    halves.push_back({block.begin, middle});
    halves.push_back({middle, block.end});
  }
  TokenOrder order;
  for (size_t member = 0; member < blocks.size(); ++member) {
    Positions& positions = order.positions_.emplace_back();
    append(halves[member], positions);
    append(halves[halves.size() - 1 - member], positions);
    AUTOSP_CHECK(!positions.empty(), "a member without positions");
  }
  order.blocks_ = std::move(blocks);
  return order;
}

TokenOrder::Share TokenOrder::share(size_t holder, size_t attendant) const {
  const Interval& block = blocks_[holder];
  Share share;
  int64_t before = 0;
  for (const Interval& interval : positions_[attendant]) {
    const int64_t begin = std::max(interval.begin, block.begin);
    const int64_t end = std::min(interval.end, block.end);
    if (begin < end) {
      AUTOSP_CHECK(share.in_block.extent() == 0, "block {} is in two parts for {}", holder,
                   attendant);
      share = {.in_block = {begin - block.begin, end - block.begin},
               .in_order = {before + begin - interval.begin, before + end - interval.begin}};
    }
    before += interval.extent();
  }
  return share;
}

}  // namespace autosp::transforms
