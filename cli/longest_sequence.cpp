#include "longest_sequence.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

namespace autosp::cli {

namespace {

using executor::ArenaBuffer;
using Ranks = std::vector<RankMemory>;

bool same_life(const ArenaBuffer& a, const ArenaBuffer& b) {
  return a.first == b.first && a.last == b.last;
}

bool same_structure(const Ranks& a, const Ranks& b) {
  return std::ranges::equal(a, b, [](const RankMemory& x, const RankMemory& y) {
    return std::ranges::equal(x.buffers, y.buffers, same_life);
  });
}

// The most that is live at once: no arena can be smaller.
int64_t live_peak(const RankMemory& rank) {
  std::map<int, int64_t> change;
  for (const ArenaBuffer& buffer : rank.buffers) {
    change[buffer.first] += buffer.size;
    change[buffer.last + 1] -= buffer.size;
  }
  int64_t live = 0;
  int64_t most = 0;
  for (const auto& [step, bytes] : change) most = std::max(most, live += bytes);
  return most;
}

// Straight lines through two lengths.
class Lines {
 public:
  Lines(int64_t at_a, const Ranks& a, int64_t at_b, const Ranks& b)
      : at_a_(at_a), a_(&a), at_b_(at_b), b_(&b) {}

  // Without arenas.
  Ranks at(int64_t sequence) const {
    const double share = static_cast<double>(sequence - at_a_) / static_cast<double>(at_b_ - at_a_);
    const auto between = [&](int64_t x, int64_t y) {
      const double bytes = static_cast<double>(x) + share * static_cast<double>(y - x);
      return std::max<int64_t>(0, std::llround(bytes));
    };
    Ranks ranks = *a_;
    for (size_t r = 0; r < ranks.size(); ++r) {
      const RankMemory& other = (*b_)[r];
      ranks[r].outside = between(ranks[r].outside, other.outside);
      ranks[r].after_step = between(ranks[r].after_step, other.after_step);
      for (size_t k = 0; k < ranks[r].buffers.size(); ++k) {
        ArenaBuffer& buffer = ranks[r].buffers[k];
        buffer.size = between(buffer.size, other.buffers[k].size);
      }
    }
    return ranks;
  }

 private:
  int64_t at_a_;
  const Ranks* a_;
  int64_t at_b_;
  const Ranks* b_;
};

// Lengths are counted in steps.
class Search {
 public:
  Search(const PlanAt& plan_at, const LengthLimits& limits, int64_t known, int64_t step)
      : plan_at_(plan_at),
        limits_(limits),
        known_(known),
        step_(step),
        fails_(limits.longest / step + 1),
        impossible_(fails_) {}

  int64_t run() {
    constexpr int kMostProbes = 48;
    int64_t next = std::clamp<int64_t>((known_ + step_ - 1) / step_, 1, fails_ - 1);
    for (int k = 0; k < kMostProbes; ++k) {
      const bool settled = probe(next);
      if (settled || lower() + resolution(lower()) >= fails_) break;
      next = choose(next);
    }
    return fits_ * step_;
  }

 private:
  struct Probe {
    Ranks ranks;
    int64_t excess = 0;  // bytes above the limits
  };

  // Below it everything fits or is too short to be planned.
  int64_t lower() const { return std::max(fits_, too_short_); }

  // With the arena that the buffers need, or at least that what is live needs.
  int64_t excess_of(const Ranks& ranks) const {
    int64_t most = std::numeric_limits<int64_t>::min();
    for (const RankMemory& rank : ranks) {
      most = std::max({most, rank.most() - limits_.memory, rank.arena - limits_.arena});
    }
    return most;
  }

  int64_t modelled(const Lines& lines, int64_t length, bool live_only) const {
    Ranks ranks = lines.at(length);
    for (RankMemory& rank : ranks) {
      rank.arena = live_only ? live_peak(rank) : executor::assign_offsets(rank.buffers);
    }
    return excess_of(ranks);
  }

  // True when the answer has been found.
  bool probe(int64_t length) {
    const auto ranks = plan_at_(length * step_);
    if (!ranks && length * step_ < known_) {
      too_short_ = std::max(too_short_, length);
      return false;
    }
    if (!ranks) {
      impossible_ = std::min(impossible_, length);
      fails_ = std::min(fails_, length);
      return false;
    }
    const int64_t excess = excess_of(*ranks);
    probes_[length] = {*ranks, excess};
    if (excess > 0) {
      fails_ = std::min(fails_, length);
      return false;
    }
    fits_ = std::max(fits_, length);
    // A shorter one may have been refused: a gap of its arena.
    if (fails_ <= fits_) fails_ = impossible_;
    return proposal_ && std::abs(excess - proposal_->excess) < proposal_->next_excess;
  }

  int64_t choose(int64_t last) {
    proposal_.reset();
    if (const auto model = lines()) {
      const int64_t found = longest_of(*model);
      const int64_t guess = found / resolution(found) * resolution(found);
      const int64_t reach = kGrowth * probes_.rbegin()->first;
      if (guess > reach) return std::min(reach, fails_ - 1);
      if (guess > too_short_ && !probes_.contains(guess)) {
        proposal_ = {modelled(*model, guess, false),
                     modelled(*model, guess + resolution(guess), false)};
        return guess;
      }
      if (guess == fits_) return std::min(fits_ + resolution(fits_), fails_ - 1);
    }
    if (fails_ == impossible_ && fits_ > 0 && fits_ * kGrowth < fails_) return beyond();
    return between(last);
  }

  // Where everything fits so far: a little past where the straight line through the last two
  // probes, or through nothing at no length, crosses the limit.
  int64_t beyond() const {
    const auto last = std::prev(probes_.end());
    int64_t before = 0;
    int64_t excess = -std::min(limits_.memory, limits_.arena);
    if (probes_.size() > 1) {
      before = std::prev(last)->first;
      excess = std::prev(last)->second.excess;
    }
    const double slope = static_cast<double>(last->second.excess - excess) /
                         static_cast<double>(last->first - before);
    const auto most = static_cast<double>(kGrowth * last->first);
    if (slope <= 0) return kGrowth * last->first;
    constexpr double kPast = 1.02;
    const double crossing =
        static_cast<double>(last->first) - static_cast<double>(last->second.excess) / slope;
    return std::max(last->first + 1, static_cast<int64_t>(std::min(kPast * crossing, most)));
  }

  // Without lines: where the straight line through the two sides crosses the limit, and every
  // other time a neighbour of the last length, whose graph is likely to be the same.
  int64_t between(int64_t last) {
    const auto below = probes_.find(lower());
    const auto above = probes_.find(fails_);
    straight_ = !straight_;
    int64_t guess = lower() + (fails_ - lower()) / 2;
    if (below != probes_.end() && above != probes_.end()) {
      const double slope = static_cast<double>(above->second.excess - below->second.excess) /
                           static_cast<double>(fails_ - lower());
      if (straight_) {
        guess = lower() + static_cast<int64_t>(static_cast<double>(-below->second.excess) / slope);
      } else if (last == fits_ || last == fails_) {
        guess = last == fits_ ? last + 1 : last - 1;
      }
    }
    return std::clamp(guess, lower() + 1, fails_ - 1);
  }

  // Through the two probes nearest to the limit between which the graph is the same.
  std::optional<Lines> lines() const {
    std::vector<int64_t> nearest;
    for (const auto& [length, probe] : probes_) nearest.push_back(length);
    std::ranges::stable_sort(
        nearest, {}, [this](int64_t length) { return std::abs(probes_.at(length).excess); });
    const Ranks& first = probes_.at(nearest.front()).ranks;
    for (size_t k = 1; k < nearest.size(); ++k) {
      const Ranks& other = probes_.at(nearest[k]).ranks;
      if (same_structure(first, other)) return Lines(nearest.front(), first, nearest[k], other);
    }
    return std::nullopt;
  }

  // The longest that fits as the lines say.
  int64_t longest_of(const Lines& lines) const {
    const int64_t bound = last_that_fits(lines, 0, impossible_ - 1, true);
    const int64_t sure = last_that_fits(lines, 0, bound, false);
    const int64_t stride = (bound - sure) / kScanned + 1;
    for (int64_t length = bound; length > sure; length -= stride) {
      if (modelled(lines, length, false) <= 0) {
        return last_that_fits(lines, length, std::min(bound, length + stride - 1), false);
      }
    }
    return sure;
  }

  int64_t last_that_fits(const Lines& lines, int64_t fits, int64_t most, bool live_only) const {
    while (fits < most) {
      const int64_t middle = fits + (most - fits + 1) / 2;
      if (modelled(lines, middle, live_only) <= 0) {
        fits = middle;
      } else {
        most = middle - 1;
      }
    }
    return fits;
  }

  static constexpr int64_t kGrowth = 16;    // of the length from one probe to the next
  static constexpr int64_t kScanned = 256;  // lengths between what surely fits and the bound

  // What the lines say of the length that is asked for, and of the next longer one.
  struct Proposal {
    int64_t excess = 0;
    int64_t next_excess = 0;
  };

  const PlanAt& plan_at_;
  const LengthLimits& limits_;
  int64_t known_;
  int64_t step_;
  int64_t fits_ = 0;       // the longest that is known to
  int64_t fails_;          // longer than `fits_`
  int64_t impossible_;     // the shortest that is too long for the model
  int64_t too_short_ = 0;  // the longest that is too short to be planned
  bool straight_ = false;
  std::map<int64_t, Probe> probes_;
  std::optional<Proposal> proposal_;
};

}  // namespace

int64_t resolution(int64_t length) {
  constexpr uint64_t kUnits = 4096;
  return static_cast<int64_t>(
      std::max<uint64_t>(1, std::bit_floor(static_cast<uint64_t>(length) / kUnits)));
}

int64_t accepted_multiple(const std::function<bool(int64_t)>& takes, int64_t known) {
  if (takes(known + 1)) return 1;
  if (known > 1 && takes(known - 1)) return 1;  // at the end of the model's positions
  for (int64_t divisor = 2; divisor < known; ++divisor) {
    if (known % divisor != 0) continue;
    if (takes(known + divisor) || takes(known - divisor)) return divisor;
  }
  return known;
}

int64_t longest_sequence(const PlanAt& plan_at, const LengthLimits& limits, int64_t known,
                         int64_t step) {
  return Search(plan_at, limits, known, step).run();
}

}  // namespace autosp::cli
