#include "transforms/recompute/budget.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <tuple>

#include "base/error.h"
#include "transforms/recompute/policies.h"
#include "transforms/recompute/simulate.h"

namespace autosp::transforms {

namespace {

using Choice = std::vector<bool>;  // by instruction: executed again

struct Candidate {
  Choice recomputed;
  double seconds = 0;
  int64_t simulated = 0;
  bool policy = false;  // one of the fixed policies
};

class BudgetSearch {
 public:
  BudgetSearch(const SpmdProgram& program, const BudgetOptions& options)
      : program_(program), options_(options), forward_(program) {}

  RecomputePlan run() {
    collect();
    std::ranges::stable_sort(candidates_, [](const Candidate& a, const Candidate& b) {
      return std::tie(a.seconds, a.simulated) < std::tie(b.seconds, b.simulated);
    });
    const std::vector<Candidate> all = candidates_;
    if (options_.tiled) drop_dominated();
    const Candidate* best = first_of_chain();
    // The chain is judged by simulation first, the policies by what they really take.
    for (const Candidate& candidate : all) {
      if (best != nullptr && candidate.seconds >= best->seconds) break;
      if (candidate.policy && fits(candidate)) best = &candidate;
    }
    if (best == nullptr) best = smallest(all);
    return describe_plan(forward_, best->recomputed);
  }

 private:
  const Candidate* first_of_chain() const {
    // The executor finds some more results in place than the simulation, never many.
    const int64_t hopeless = options_.bytes + options_.bytes / 4;
    for (auto candidate = first_that_may_fit(); candidate != candidates_.end(); ++candidate) {
      if (!options_.tiled && candidate->simulated > hopeless) continue;
      if (fits(*candidate)) return &*candidate;
    }
    return nullptr;
  }

  // Of those that seem to take least, the fastest that fits. Throws Error where none does.
  const Candidate* smallest(const std::vector<Candidate>& all) const {
    constexpr size_t kTried = 8;
    std::vector<const Candidate*> tried;
    for (const Candidate& candidate : all) tried.push_back(&candidate);
    std::ranges::stable_sort(
        tried, {}, [](const Candidate* c) { return std::tuple(!c->policy, c->simulated); });
    tried.resize(std::min(tried.size(), kTried));
    std::ranges::stable_sort(tried, {}, &Candidate::seconds);
    for (const Candidate* candidate : tried) {
      if (fits(*candidate)) return candidate;
    }
    refuse(tried);
  }

  // Leaves those that need less memory, without tiles, than all faster ones.
  void drop_dominated() {
    int64_t least = std::numeric_limits<int64_t>::max();
    std::erase_if(candidates_, [&](const Candidate& candidate) {
      if (candidate.simulated >= least) return true;
      least = candidate.simulated;
      return false;
    });
  }

  // With tiles a simulated peak excludes nothing, but real peaks fall along with simulated ones:
  // bisect instead of trying all.
  std::vector<Candidate>::const_iterator first_that_may_fit() const {
    if (!options_.tiled) return candidates_.begin();
    return std::ranges::partition_point(
        candidates_, [this](const Candidate& candidate) { return !fits(candidate); });
  }

  bool fits(const Candidate& candidate) const {
    const auto [known, is_new] = peaks_.try_emplace(candidate.recomputed);
    if (is_new) known->second = real_peak(candidate, options_.bytes);
    return known->second <= options_.bytes;
  }

  int64_t real_peak(const Candidate& candidate, int64_t enough) const {
    const RecomputePlan plan = describe_plan(forward_, candidate.recomputed);
    return options_.peak(apply_recompute(program_, plan), enough);
  }

  void collect() {
    for (RecomputePolicy policy : {RecomputePolicy::kNone, RecomputePolicy::kMinCut,
                                   RecomputePolicy::kSac, RecomputePolicy::kFull}) {
      add(choose(forward_, policy));
      candidates_.back().policy = true;
    }
    const std::vector<Choice> hull = hull_choices();
    for (size_t k = 0; k < hull.size(); ++k) {
      add(hull[k]);
      if (k + 1 < hull.size()) add_between(hull[k], hull[k + 1]);
    }
  }

  void add(Choice choice) {
    kept_values(forward_, choice);  // drops what is of no use
    Candidate candidate{.recomputed = std::move(choice)};
    for (size_t k = 0; k < candidate.recomputed.size(); ++k) {
      if (candidate.recomputed[k]) candidate.seconds += options_.seconds[k];
    }
    candidate.simulated = simulated_peak(forward_, candidate.recomputed);
    candidates_.push_back(std::move(candidate));
  }

  // --- The chain of minimum cuts, from most recomputation to least.

  struct Point {
    Choice choice;
    double seconds = 0;
    double bytes = 0;  // kept
  };

  Point cut_at(double bytes_per_second) const {
    CutProblem problem = priced_problem(forward_);
    for (size_t k = 0; k < problem.execute_again.size(); ++k) {
      // At least one byte: of equals, less recomputation.
      problem.execute_again[k] = 1 + std::llround(options_.seconds[k] * bytes_per_second);
    }
    Point point{.choice = solve(forward_, problem)};
    for (size_t k = 0; k < point.choice.size(); ++k) {
      if (point.choice[k]) point.seconds += options_.seconds[k];
    }
    for (PlacedId id : describe_plan(forward_, point.choice).kept) {
      point.bytes += static_cast<double>(forward_.bytes(id));
    }
    return point;
  }

  std::vector<Choice> hull_choices() const {
    const Point most = cut_at(0);
    const Point least = cut_at(1e14);
    std::vector<Choice> choices{most.choice};
    split(most, least, 0, choices);
    choices.push_back(least.choice);
    return choices;
  }

  // Where the lines of two cuts cross, a third is cheaper than both, or there is none between.
  void split(const Point& more, const Point& less, int depth, std::vector<Choice>& choices) const {
    constexpr int kDeepest = 5;
    if (depth > kDeepest || more.choice == less.choice || more.seconds <= less.seconds) return;
    const double price = (less.bytes - more.bytes) / (more.seconds - less.seconds);
    if (!(price > 0)) return;
    const Point between = cut_at(price);
    if (between.choice == more.choice || between.choice == less.choice) return;
    split(more, between, depth + 1, choices);
    choices.push_back(between.choice);
    split(between, less, depth + 1, choices);
  }

  // --- Between two choices: pieces of what only the first recomputes, last layer first.

  void add_between(const Choice& more, const Choice& less) {
    Choice choice = more;
    for (const std::vector<size_t>& piece : pieces(more, less)) {
      for (size_t k : piece) choice[k] = false;
      for (size_t k = 0; k < choice.size(); ++k) choice[k] = choice[k] || (less[k] && !more[k]);
      add(choice);
    }
  }

  std::vector<std::vector<size_t>> pieces(const Choice& more, const Choice& less) const {
    std::vector<size_t> parent(more.size());
    std::iota(parent.begin(), parent.end(), size_t{0});
    const auto root = [&](size_t k) {
      while (parent[k] != k) k = parent[k] = parent[parent[k]];
      return k;
    };
    const auto inside = [&](size_t k) { return more[k] && !less[k]; };
    for (size_t k = 0; k < more.size(); ++k) {
      if (!inside(k)) continue;
      for (PlacedId operand : operands_of(forward_.instructions()[k])) {
        const int made = forward_.producer(operand);
        if (made >= 0 && inside(static_cast<size_t>(made))) {
          parent[root(k)] = root(static_cast<size_t>(made));
        }
      }
    }
    std::vector<std::vector<size_t>> by_root(more.size());
    for (size_t k = 0; k < more.size(); ++k) {
      if (inside(k)) by_root[root(k)].push_back(k);
    }
    std::erase_if(by_root, [](const auto& piece) { return piece.empty(); });
    std::ranges::stable_sort(by_root, std::greater<>(),
                             [](const auto& piece) { return piece.back(); });
    return by_root;
  }

  // None of `tried` fits; what is known of them is one rank's peak.
  [[noreturn]] void refuse(std::vector<const Candidate*> tried) const {
    constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
    const auto known = [this](const Candidate* c) { return peaks_.at(c->recomputed); };
    std::ranges::stable_sort(tried, {}, known);
    int64_t least = kAny;
    for (const Candidate* candidate : tried) {
      if (known(candidate) < least) least = std::min(least, real_peak(*candidate, kAny));
    }
    throw Error("a step cannot do with {}", format_bytes(static_cast<double>(options_.bytes)))
        .note(fmt::format("with as much recomputation as pays, it takes {} ({} bytes)",
                          format_bytes(static_cast<double>(least)), least))
        .help("give that much, or split the sequence over more ranks");
  }

  const SpmdProgram& program_;
  const BudgetOptions& options_;
  ForwardPass forward_;
  std::vector<Candidate> candidates_;
  // Of those that were asked for: of all ranks where that fits, else of one that does not.
  mutable std::map<Choice, int64_t> peaks_;
};

}  // namespace

RecomputePlan plan_recompute_within(const SpmdProgram& program, const BudgetOptions& options) {
  AUTOSP_CHECK(options.seconds.size() == program.instructions.size(), "{} prices",
               options.seconds.size());
  require_loss(program);
  return BudgetSearch(program, options).run();
}

}  // namespace autosp::transforms
