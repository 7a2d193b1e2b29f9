#include "transforms/fuse_attention/verify.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace autosp::transforms::fusion {

namespace {

constexpr double kTolerance = 1e-9;

enum class Case : uint8_t { kPlain, kMasked, kDeadRow, kSharedDeadRow, kUnguardedDeadRow };

class Verifier {
 public:
  Verifier(const BlackBox& box, const Cutout& cutout, const Meaning& meaning,
           const std::vector<Term>& terms, const std::vector<MaskToVerify>& masks)
      : box_(box), meaning_(meaning), terms_(terms), masks_(masks) {
    for (const auto& [role, value] : cutout.results) results_.push_back(role);
    backward_ = results_.size() > 1;
    for (size_t t = 0; t < terms.size(); ++t) {
      if (meaning.terms[t].kind == TermKind::kMask || masks[t].number) hiders_.push_back(t);
    }
  }

  Verified verify() {
    for (int trial = 0; trial < 2; ++trial) require_equal(Case::kPlain);
    if (hiders_.empty()) return verified_;
    for (int trial = 0; trial < 2; ++trial) require_equal(Case::kMasked);
    find_dead_rows();
    return verified_;
  }

 private:
  Block random_block(const AtomList& order, double amplitude = 1) {
    Block block{.order = order,
                .values = std::vector<double>(static_cast<size_t>(box_.sizes().product(order)))};
    std::normal_distribution<double> normal;
    for (double& value : block.values) value = amplitude * normal(generator_);
    return block;
  }

  // Which weights dropout keeps: all its terms choose alike.
  std::vector<double> random_choice() {
    const CanonicalFactors& canonical = box_.canonical();
    std::vector<double> kept(static_cast<size_t>(box_.sizes().product(canonical.full())));
    std::bernoulli_distribution coin(0.7);
    for (double& value : kept) value = coin(generator_) ? 1 : 0;
    return kept;
  }

  // Where a term masks: at random, but key 2 is seen by all; in a dead row, not even that. Dead
  // are the rows of query 1, or, where the term is the same for all queries, of the first batch
  // entry; in a shared dead row each key is hidden by one term at least, and not by all; in an
  // unguarded one, no term that is the same for all keys hides the row besides.
  Block random_mask(size_t t, Case which) {
    const Term& term = terms_[t];
    Block block = random_block(term.order);
    const CanonicalFactors& canonical = box_.canonical();
    const bool per_query = std::ranges::find(term.order, canonical.queries[0]) != term.order.end();
    std::bernoulli_distribution coin(0.5);
    std::vector<int64_t> index(term.order.size(), 0);
    for (double& value : block.values) {
      const auto at = [&](AtomId atom) {
        const auto found = std::ranges::find(term.order, atom);
        return found == term.order.end() ? int64_t{-1}
                                         : index[static_cast<size_t>(found - term.order.begin())];
      };
      const int64_t key = at(canonical.keys[0]);
      const int64_t query = at(canonical.queries[0]);
      const bool first = canonical.batch.empty() || at(canonical.batch[0]) <= 0;
      const bool own = which == Case::kDeadRow ||
                       (which == Case::kSharedDeadRow && (key < 0 || hider_of(key) == t)) ||
                       (which == Case::kUnguardedDeadRow && key >= 0);
      const bool dead = own && (per_query ? query == 1 : first);
      // A mask without keys hides whole rows: only in the dead case.
      const bool hidden = key >= 0 && key != 2 && coin(generator_);
      value = dead || hidden ? 1 : 0;
      for (size_t k = index.size(); k-- > 0;) {
        if (++index[k] < box_.sizes().of(term.order[k])) break;
        index[k] = 0;
      }
    }
    return block;
  }

  // The keys are dealt out among the terms that mask.
  size_t hider_of(int64_t key) const { return hiders_[static_cast<size_t>(key) % hiders_.size()]; }

  struct Trial {
    FlashOperands flash;
    std::map<ResultRole, Block> region;
  };

  Trial run(Case which) {
    const CanonicalFactors& canonical = box_.canonical();
    Trial trial;
    auto& operands = trial.flash.operands;
    const double bend =
        meaning_.softcap == 0 ? 1 : 2 * std::sqrt(std::fabs(meaning_.softcap / meaning_.scale));
    for (const OperandRole role : {OperandRole::kQuery, OperandRole::kKey, OperandRole::kValue}) {
      operands[role] =
          random_block(canonical.of(role), role == OperandRole::kQuery ? std::min(bend, 1e3) : 1);
    }
    if (backward_) {
      operands[OperandRole::kOutputGradient] =
          random_block(canonical.of(OperandRole::kOutputGradient));
    }
    const std::vector<double> kept = random_choice();
    std::vector<Block> fed;
    for (size_t t = 0; t < terms_.size(); ++t) {
      const Term& term = terms_[t];
      const TermMeaning& meaning = meaning_.terms[t];
      Block value = random_block(term.order);
      Block mask;
      if (meaning.kind == TermKind::kMask) {
        mask = random_mask(t, which);
        if (which == Case::kPlain) std::ranges::fill(mask.values, 0);
        value = mask;
        for (double& entry : value.values) entry = (entry != 0) == meaning.masking_value ? 1 : 0;
      } else if (meaning.kind == TermKind::kDrop) {
        for (size_t k = 0; k < value.values.size(); ++k) {
          value.values[k] = kept[k] * term.drop->kept;
        }
      } else if (meaning.kind == TermKind::kScale) {
        for (double& entry : value.values) entry = 0.5 + std::fabs(entry);
      } else if (term.is_bool()) {
        for (double& entry : value.values) entry = entry > 0 ? 1 : 0;
      }
      trial.flash.terms.push_back(value);
      trial.flash.bools.push_back(term.is_bool());
      if (meaning.kind == TermKind::kAdd && masks_[t].number && which != Case::kPlain) {
        // An additive mask holds 0 and its number, and nothing else.
        mask = random_mask(t, which);
        std::ranges::fill(trial.flash.terms.back().values, 0);
        for (size_t k = 0; k < value.values.size(); ++k) {
          value.values[k] = mask.values[k] != 0 ? *masks_[t].number : 0;
        }
      }
      trial.flash.masked.push_back(std::move(mask));
      fed.push_back(std::move(value));
    }
    trial.region = box_.run(operands, fed, results_);
    return trial;
  }

  struct Mismatch {
    double error = 0;
    ResultRole where = ResultRole::kOutput;
  };

  // A gradient may leave the region scaled; the first comparison finds by how much.
  double factor_of(ResultRole role, const std::vector<double>& want,
                   const std::vector<double>& got) {
    const auto known = verified_.factors.find(role);
    if (known != verified_.factors.end()) return known->second;
    double xy = 0;
    double xx = 1e-300;
    for (size_t k = 0; k < want.size(); ++k) {
      xy += want[k] * got[k];
      xx += want[k] * want[k];
    }
    const double factor = xy / xx;
    const double rounded = std::fabs(factor - 1) < 1e-9 ? 1 : factor;
    verified_.factors[role] = rounded;
    return rounded;
  }

  Mismatch compare(const Trial& trial, DeadRows dead_rows, bool dead_row_gradient) {
    const auto wanted = flash_attention(box_.canonical(), box_.sizes(), meaning_, trial.flash,
                                        dead_rows, dead_row_gradient);
    Mismatch worst;
    for (const auto& [role, block] : trial.region) {
      const std::vector<double>& want = wanted.at(role).values;
      const double factor = factor_of(role, want, block.values);
      double largest = 1e-30;
      double difference = 0;
      for (size_t k = 0; k < want.size(); ++k) {
        const double got = block.values[k];
        if (std::isnan(got) != std::isnan(want[k])) difference = INFINITY;
        if (std::isnan(got) || std::isnan(want[k])) continue;
        largest = std::max(largest, std::fabs(got));
        difference = std::max(difference, std::fabs(got - factor * want[k]));
      }
      if (!(difference / largest <= worst.error)) worst = {difference / largest, role};
    }
    return worst;
  }

  void require_equal(Case which) {
    const Mismatch worst = compare(run(which), DeadRows::kNan, false);
    if (!(worst.error <= kTolerance)) {
      refuse("{} the {} differs from attention's by {:.1e}",
             which == Case::kPlain ? "unmasked," : "masked,", name_of(worst.where), worst.error);
    }
    verified_.error = std::max(verified_.error, worst.error);
  }

  void find_dead_rows() {
    std::vector<Trial> trials = {run(Case::kDeadRow)};
    if (hiders_.size() > 1) trials.push_back(run(Case::kSharedDeadRow));
    if (unguarded_rows_may_die()) trials.push_back(run(Case::kUnguardedDeadRow));
    for (const DeadRows dead_rows :
         {DeadRows::kUniform, DeadRows::kZero, DeadRows::kUnmasked, DeadRows::kNan}) {
      for (const bool gradient : {true, false}) {
        const bool equal = std::ranges::all_of(trials, [&](const Trial& trial) {
          return compare(trial, dead_rows, gradient).error <= kTolerance;
        });
        if (!equal) continue;
        verified_.dead_rows = dead_rows;
        verified_.dead_row_gradient = gradient;
        return;
      }
    }
    verified_.dead_rows_known = false;
  }

  bool has_keys(size_t t) const {
    const AtomId key = box_.canonical().keys[0];
    return std::ranges::find(terms_[t].order, key) != terms_[t].order.end();
  }

  // Whether some terms hide rows, others keys, and all keys of a row may be hidden though the row
  // is not. A guard that another term implies hides every row that this other hides whole.
  bool unguarded_rows_may_die() const {
    size_t of_keys = 0;
    size_t of_rows = 0;
    bool implied = false;
    for (const size_t t : hiders_) {
      ++(has_keys(t) ? of_keys : of_rows);
      implied = implied || masks_[t].implied;
    }
    return of_rows > 0 && of_keys > 0 && !(implied && of_keys == 1);
  }

  const BlackBox& box_;
  const Meaning& meaning_;
  const std::vector<Term>& terms_;
  const std::vector<MaskToVerify>& masks_;
  std::vector<ResultRole> results_;
  bool backward_ = false;
  std::vector<size_t> hiders_;  // terms that mask
  std::mt19937_64 generator_{7};
  Verified verified_;
};

}  // namespace

Verified verify_region(const BlackBox& box, const Cutout& cutout, const Meaning& meaning,
                       const std::vector<Term>& terms, const std::vector<MaskToVerify>& masks) {
  return Verifier(box, cutout, meaning, terms, masks).verify();
}

}  // namespace autosp::transforms::fusion
