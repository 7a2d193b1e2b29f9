// Offsets for buffers with known lifetimes: greedy best fit, largest first.
//
// The largest buffers are placed while the arena is empty; a later one goes into the tightest gap
// between the buffers that are live while it is. Optimal it is not (the problem is NP-hard), but on
// training graphs it stays within a few per cent of the live peak, which no arena can be below.
#include <algorithm>
#include <limits>
#include <vector>

#include "executor/program.h"

namespace autosp::executor {

namespace {

constexpr int64_t kAlignment = 64;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

bool overlap_in_time(const ArenaBuffer& a, const ArenaBuffer& b) {
  return a.first <= b.last && b.first <= a.last;
}

// The offset of the smallest gap between `placed` (by offset) that holds `size`; the end otherwise.
int64_t best_gap(const std::vector<const ArenaBuffer*>& placed, int64_t size) {
  int64_t best = -1;
  int64_t best_waste = std::numeric_limits<int64_t>::max();
  int64_t end = 0;
  for (const ArenaBuffer* other : placed) {
    const int64_t gap = other->offset - end;
    if (gap >= size && gap - size < best_waste) {
      best = end;
      best_waste = gap - size;
    }
    end = std::max(end, other->offset + aligned(other->size));
  }
  return best >= 0 ? best : end;
}

// The placed buffers, found by when they live: each is listed in every period it touches, so that a
// short-lived buffer meets only its contemporaries and planning grows linearly with the graph.
class Timeline {
 public:
  void add(const ArenaBuffer& buffer) {
    const size_t end = period(buffer.last) + 1;
    if (periods_.size() < end) periods_.resize(end);
    for (size_t p = period(buffer.first); p < end; ++p) periods_[p].push_back(&buffer);
  }

  // Those that live at some step at which `buffer` does, by offset.
  std::vector<const ArenaBuffer*> contemporaries(const ArenaBuffer& buffer) const {
    std::vector<const ArenaBuffer*> result;
    const size_t first = period(buffer.first);
    for (size_t p = first; p <= period(buffer.last) && p < periods_.size(); ++p) {
      for (const ArenaBuffer* other : periods_[p]) {
        // One that began before this period was met in the one before.
        const bool met = p > first && period(other->first) < p;
        if (!met && overlap_in_time(buffer, *other)) result.push_back(other);
      }
    }
    std::ranges::sort(result, {}, &ArenaBuffer::offset);
    return result;
  }

 private:
  static constexpr int kSteps = 32;  // of a period
  static size_t period(int step) { return static_cast<size_t>(step / kSteps); }

  std::vector<std::vector<const ArenaBuffer*>> periods_;
};

}  // namespace

int64_t assign_offsets(std::vector<ArenaBuffer>& buffers) {
  using enum ArenaBuffer::Placing;
  std::vector<size_t> order;
  Timeline placed;
  int64_t total = 0;
  const auto place = [&](const ArenaBuffer& buffer) {
    total = std::max(total, buffer.offset + aligned(buffer.size));
    placed.add(buffer);
  };
  for (size_t k = 0; k < buffers.size(); ++k) {
    if (buffers[k].placing == kFixed) place(buffers[k]);
    if (buffers[k].placing == kFree) order.push_back(k);
  }
  std::ranges::stable_sort(order,
                           [&](size_t a, size_t b) { return buffers[a].size > buffers[b].size; });
  for (size_t k : order) {
    ArenaBuffer& buffer = buffers[k];
    buffer.offset = best_gap(placed.contemporaries(buffer), aligned(buffer.size));
    place(buffer);
  }
  return total;
}

}  // namespace autosp::executor
