// Values that are unit vectors make the output equal the weights P. Differences of log P along a
// row are differences of scores, whatever the row's normalisation.
#include "transforms/fuse_attention/probe.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace autosp::transforms::fusion {

namespace {

using Vector = std::vector<double>;

double largest(const Vector& x) {
  double result = 0;
  for (const double value : x) result = std::max(result, std::fabs(value));
  return result;
}

double largest_difference(const Vector& x, const Vector& y) {
  double result = 0;
  for (size_t k = 0; k < x.size(); ++k) {
    const double difference = std::fabs(x[k] - y[k]);
    result = std::isnan(difference) ? INFINITY : std::max(result, difference);
  }
  return result;
}

// y = factor * x in least squares, and the largest residual relative to y.
struct Fit {
  double factor = 0;
  double residual = 0;
};
Fit fit(const Vector& x, const Vector& y) {
  double xy = 0;
  double xx = 0;
  for (size_t k = 0; k < x.size(); ++k) {
    xy += x[k] * y[k];
    xx += x[k] * x[k];
  }
  Fit result{.factor = xy / std::max(xx, 1e-300)};
  for (size_t k = 0; k < x.size(); ++k) {
    result.residual = std::max(result.residual, std::fabs(y[k] - result.factor * x[k]));
  }
  result.residual /= std::max(largest(y), 1e-300);
  return result;
}

class Prober {
 public:
  Prober(const GraphFacts& facts, const BlackBox& box, const std::vector<Term>& terms)
      : facts_(facts), box_(box), terms_(terms), canonical_(box.canonical()) {
    const Sizes& sizes = box_.sizes();
    keys_ = sizes.product(canonical_.keys);
    width_ = sizes.product(canonical_.width);
    query_ = random_block(canonical_.of(OperandRole::kQuery));
    key_ = random_block(canonical_.of(OperandRole::kKey));
    columns_ = sizes.product(canonical_.value_width);
    products_ = products();
    meaning_.terms.resize(terms.size());
  }

  Meaning infer() {
    find_neutral();
    find_kept_scale();
    find_scale();
    for (size_t t = 0; t < terms_.size(); ++t) classify(t);
    find_known_sink();
    return std::move(meaning_);
  }

 private:
  Block random_block(const AtomList& order) {
    Block block{.order = order, .values = Vector(static_cast<size_t>(box_.sizes().product(order)))};
    std::normal_distribution<double> normal;
    for (double& value : block.values) value = normal(generator_);
    return block;
  }

  Block filled(const Term& term, double value) const {
    return {.order = term.order,
            .values = Vector(static_cast<size_t>(box_.sizes().product(term.order)), value)};
  }

  // Values whose column e is 1 for key `first` + e and 0 for others.
  Block unit_values(int64_t first) const {
    const AtomList order = canonical_.of(OperandRole::kValue);
    Block block{.order = order, .values = Vector(static_cast<size_t>(box_.sizes().product(order)))};
    for (size_t k = 0; k < block.values.size(); ++k) {
      const int64_t row = static_cast<int64_t>(k) / columns_;
      block.values[k] = row % keys_ == first + static_cast<int64_t>(k) % columns_ ? 1 : 0;
    }
    return block;
  }

  // The weights, indexed by CanonicalFactors::full(), of `amplitude` times the queries. Values have
  // a column per key, but where they are a single number per head: then the keys take turns.
  Vector weights(double amplitude, const std::vector<Block>& terms) const {
    Block query = query_;
    for (double& value : query.values) value *= amplitude;
    Vector p;
    for (int64_t first = 0; first < keys_; first += columns_) {
      const auto results = box_.run({{OperandRole::kQuery, query},
                                     {OperandRole::kKey, key_},
                                     {OperandRole::kValue, unit_values(first)}},
                                    terms, {ResultRole::kOutput});
      const Vector& output = results.at(ResultRole::kOutput).values;
      const auto rows = output.size() / static_cast<size_t>(columns_);
      p.resize(rows * static_cast<size_t>(keys_));
      for (size_t row = 0; row < rows; ++row) {
        for (int64_t e = 0; e < columns_ && first + e < keys_; ++e) {
          p[row * static_cast<size_t>(keys_) + static_cast<size_t>(first + e)] =
              output[row * static_cast<size_t>(columns_) + static_cast<size_t>(e)];
        }
      }
    }
    return p;
  }

  // Every entry less the row's first.
  Vector along_rows(Vector x) const {
    const auto n = static_cast<size_t>(keys_);
    for (size_t row = 0; row < x.size() / n; ++row) {
      const double first = x[row * n];
      for (size_t k = 0; k < n; ++k) x[row * n + k] -= first;
    }
    return x;
  }

  // Scores, up to a number per row.
  Vector scores(double amplitude, const std::vector<Block>& terms) const {
    Vector p = weights(amplitude, terms);
    for (double& value : p) value = std::log(value);
    return along_rows(std::move(p));
  }

  Vector products() const {
    const Sizes& sizes = box_.sizes();
    const AtomList rows = concat({canonical_.batch, canonical_.heads()});
    const Block key = arranged(key_, concat({rows, canonical_.keys, canonical_.width}), sizes);
    const int64_t queries = sizes.product(canonical_.queries);
    Vector result;
    for (int64_t r = 0; r < sizes.product(rows); ++r) {
      for (int64_t i = 0; i < queries; ++i) {
        for (int64_t j = 0; j < keys_; ++j) {
          double sum = 0;
          for (int64_t d = 0; d < width_; ++d) {
            sum += query_.values[static_cast<size_t>(((r * queries) + i) * width_ + d)] *
                   key.values[static_cast<size_t>(((r * keys_) + j) * width_ + d)];
          }
          result.push_back(sum);
        }
      }
    }
    return result;
  }

  static Vector times(double factor, Vector x) {
    for (double& value : x) value *= factor;
    return x;
  }

  static Vector minus(Vector x, const Vector& y) {
    for (size_t k = 0; k < x.size(); ++k) x[k] -= y[k];
    return x;
  }

  bool looks_normal(const Vector& p) const {
    bool varies = false;
    for (size_t k = 0; k < p.size(); ++k) {
      if (!std::isfinite(p[k]) || p[k] <= 0) return false;
      varies = varies || std::fabs(p[k] - p[k - k % static_cast<size_t>(keys_)]) > 1e-6;
    }
    return varies;
  }

  // The setting of the terms under which the weights are a plain softmax: additive operands 0,
  // factors 1, and each bool what lets every key through.
  void find_neutral() {
    std::vector<size_t> bools;
    std::vector<size_t> row_floats;
    for (size_t t = 0; t < terms_.size(); ++t) {
      if (terms_[t].drop) {
        meaning_.terms[t].kind = TermKind::kDrop;
      } else if (terms_[t].is_bool()) {
        bools.push_back(t);
      } else if (std::ranges::find(terms_[t].order, canonical_.keys[0]) == terms_[t].order.end()) {
        row_floats.push_back(t);
      }
    }
    if (bools.size() > 6) refuse("{} masks meet in one softmax", bools.size());
    const int attempts = row_floats.empty() ? 1 : 2;
    for (int factors_one = 0; factors_one < attempts; ++factors_one) {
      for (size_t bits = 0; bits < size_t{1} << bools.size(); ++bits) {
        std::vector<Block> setting;
        for (const Term& term : terms_) {
          setting.push_back(filled(term, term.drop ? term.drop->kept : 0));
        }
        if (factors_one == 1) {
          for (size_t t : row_floats) setting[t] = filled(terms_[t], 1);
        }
        for (size_t b = 0; b < bools.size(); ++b) {
          setting[bools[b]] = filled(terms_[bools[b]], static_cast<double>(bits >> b & 1));
        }
        if (!looks_normal(weights(0.3, setting))) continue;
        neutral_ = std::move(setting);
        for (size_t b = 0; b < bools.size(); ++b) {
          meaning_.terms[bools[b]].masking_value = (bits >> b & 1) == 0;
        }
        if (factors_one == 1) {
          for (size_t t : row_floats) meaning_.terms[t].kind = TermKind::kScale;
        }
        return;
      }
    }
    refuse("no setting of its masks makes it a softmax over the keys");
  }

  // With every weight kept, what those of a row add up to.
  void find_kept_scale() {
    const bool drops =
        std::ranges::any_of(terms_, [](const Term& term) { return term.drop.has_value(); });
    if (!drops) return;
    const Vector p = weights(0.3, neutral_);
    const auto n = static_cast<size_t>(keys_);
    for (size_t row = 0; row < p.size() / n; ++row) {
      double sum = 0;
      for (size_t k = 0; k < n; ++k) sum += p[row * n + k];
      if (row == 0) meaning_.kept_scale = sum;
      if (!(std::fabs(sum - meaning_.kept_scale) <= 1e-12 * sum)) {
        refuse("what is left of dropped weights differs from row to row, as beside a sink");
      }
    }
  }

  void find_scale() {
    const Vector base = scores(0, neutral_);
    const Vector x = along_rows(products_);
    const auto slope = [&](double amplitude) {
      return fit(times(amplitude, x), minus(scores(amplitude, neutral_), base));
    };
    const Fit near_zero = slope(1e-4);
    if (near_zero.residual > 1e-6 || near_zero.factor == 0) {
      refuse("scores are not proportional to query times key (residual {:.1e})",
             near_zero.residual);
    }
    // Linear all the way? Then the larger amplitude gives the more exact scale.
    const double large = 3 / std::fabs(near_zero.factor) / std::sqrt(static_cast<double>(width_));
    const Vector y = minus(scores(large, neutral_), base);
    const Fit far = fit(times(large, x), y);
    if (far.residual < 1e-8) {
      meaning_.scale = snapped(far.factor, 1e-12);
      return;
    }
    // Second differences take away the cubic term of the hyperbolic tangent.
    const double full = slope(0.02).factor;
    const double half = slope(0.01).factor;
    meaning_.scale = (4 * half - full) / 3;
    const auto capped = [&](double cap) {
      Vector z = times(meaning_.scale * large, products_);
      for (double& value : z) value = cap * std::tanh(value / cap);
      return along_rows(std::move(z));
    };
    meaning_.softcap = fit_softcap(capped, y);
    refine_softcap(large, y);
    meaning_.scale = snapped(meaning_.scale, 1e-9);
    meaning_.softcap = snapped(meaning_.softcap, 1e-9);
    const double residual = largest_difference(capped(meaning_.softcap), y) / largest(y);
    if (!(residual < 1e-8)) {
      refuse("scores are bent, and not by a softcap (residual {:.1e})", residual);
    }
  }

  Vector capped(Vector x) const {
    const double cap = meaning_.softcap;
    if (cap == 0) return x;
    for (double& value : x) value = cap * std::tanh(value / cap);
    return x;
  }

  // p = exp(s) / (sum of exp(s) + exp(sink)): what is missing in the sum, where that is one number.
  void find_known_sink() {
    const auto is = [&](TermKind kind) {
      return std::ranges::any_of(meaning_.terms,
                                 [&](const TermMeaning& term) { return term.kind == kind; });
    };
    if (is(TermKind::kSink) || is(TermKind::kDrop)) return;
    constexpr double kAmplitude = 0.3;
    const Vector p = weights(kAmplitude, neutral_);
    const Vector s = capped(times(meaning_.scale * kAmplitude, products_));
    const auto n = static_cast<size_t>(keys_);
    double least = INFINITY;
    double most = 0;
    for (size_t row = 0; row < p.size(); row += n) {
      double sum = 0;
      for (size_t k = row; k < row + n; ++k) sum += std::exp(s[k]);
      const double missing = std::exp(s[row]) / p[row] - sum;
      least = std::min(least, missing);
      most = std::max(most, missing);
    }
    if (!(least > 1e-6) || most - least > 1e-9 * most) return;
    const double sink = std::log((least + most) / 2);
    meaning_.known_sink = std::fabs(sink) < 1e-9 ? 0 : snapped(sink, 1e-9);
  }

  // Scale and cap together, by Gauss and Newton's method.
  void refine_softcap(double amplitude, const Vector& y) {
    for (int round = 0; round < 30; ++round) {
      const double cap = meaning_.softcap;
      Vector f(products_.size());
      Vector by_scale(products_.size());
      Vector by_cap(products_.size());
      for (size_t k = 0; k < products_.size(); ++k) {
        const double x = amplitude * products_[k];
        const double z = meaning_.scale * x / cap;
        const double t = std::tanh(z);
        f[k] = cap * t;
        by_scale[k] = x * (1 - t * t);
        by_cap[k] = t - z * (1 - t * t);
      }
      const Vector r = minus(y, along_rows(std::move(f)));
      by_scale = along_rows(std::move(by_scale));
      by_cap = along_rows(std::move(by_cap));
      double ss = 0, sc = 0, cc = 0, rs = 0, rc = 0;
      for (size_t k = 0; k < r.size(); ++k) {
        ss += by_scale[k] * by_scale[k];
        sc += by_scale[k] * by_cap[k];
        cc += by_cap[k] * by_cap[k];
        rs += by_scale[k] * r[k];
        rc += by_cap[k] * r[k];
      }
      const double determinant = ss * cc - sc * sc;
      if (!(std::fabs(determinant) > 0)) return;
      const double cap_step = (ss * rc - sc * rs) / determinant;
      if (!(std::fabs(cap_step) < 0.5 * cap)) return;  // far from any cap
      meaning_.scale += (cc * rs - sc * rc) / determinant;
      meaning_.softcap += cap_step;
    }
  }

  // The cap that comes nearest, by a coarse search and a golden section, both over its logarithm.
  template <typename Capped>
  static double fit_softcap(const Capped& capped, const Vector& y) {
    const auto error = [&](double log_cap) {
      return largest_difference(capped(std::exp(log_cap)), y);
    };
    const double low = std::log(1e-2);
    const double step = (std::log(1e7) - low) / 400;
    int best = 0;
    for (int k = 1; k <= 400; ++k) {
      if (error(low + k * step) < error(low + best * step)) best = k;
    }
    double a = low + (best - 1) * step;
    double b = low + (best + 1) * step;
    for (int round = 0; round < 80; ++round) {
      const double c = a + (b - a) * 0.382;
      const double d = a + (b - a) * 0.618;
      (error(c) < error(d) ? b : a) = error(c) < error(d) ? d : c;
    }
    return std::exp((a + b) / 2);
  }

  // The float32 that the graph most likely says, when the estimate is as near as it can be.
  static double snapped(double value, double tolerance) {
    const auto rounded = static_cast<double>(static_cast<float>(value));
    return std::fabs(rounded - value) <= tolerance * std::fabs(value) ? rounded : value;
  }

  Vector spread(const Block& block) const {
    return arranged(block, canonical_.full(), box_.sizes()).values;
  }

  bool is_per_head(const Term& term) const {
    const AtomList heads = canonical_.heads();
    return std::ranges::all_of(
        term.order, [&](AtomId atom) { return std::ranges::find(heads, atom) != heads.end(); });
  }

  void classify(size_t t) {
    const Term& term = terms_[t];
    TermMeaning& meaning = meaning_.terms[t];
    const std::string& name = facts_.graph().name_of(term.root);
    if (meaning.kind == TermKind::kDrop) return;
    std::vector<Block> setting = neutral_;
    constexpr double kAmplitude = 0.3;
    const Vector plain = weights(kAmplitude, neutral_);
    if (term.is_bool()) {
      std::bernoulli_distribution coin(0.4);
      for (double& value : setting[t].values) value = coin(generator_) ? 1 : 0;
      // However few entries there are, one masks.
      setting[t].values.back() = meaning.masking_value ? 1 : 0;
      const Vector p = weights(kAmplitude, setting);
      if (largest_difference(p, plain) < 1e-9) {
        meaning.kind = TermKind::kUnused;
      } else if (masks_where(p, spread(setting[t]), meaning.masking_value ? 1 : 0)) {
        meaning.kind = TermKind::kMask;
      } else {
        refuse("'{}' chooses, but does not mask", name);
      }
      return;
    }
    if (meaning.kind == TermKind::kScale) {
      std::uniform_real_distribution<double> some(0.5, 1.5);
      for (double& value : setting[t].values) value = some(generator_);
      const Vector factor = spread(setting[t]);
      const Vector got = scores(kAmplitude, setting);
      for (const bool divides : {false, true}) {
        Vector expected = times(meaning_.scale * kAmplitude, products_);
        for (size_t k = 0; k < expected.size(); ++k) {
          divides ? expected[k] /= factor[k] : expected[k] *= factor[k];
        }
        meaning.divides = divides;
        if (meaning_.softcap == 0 && largest_difference(along_rows(expected), got) < 1e-8) return;
      }
      meaning.kind = TermKind::kUnused;
      if (largest_difference(got, scores(kAmplitude, neutral_)) < 1e-9) {
        Vector scaled = plain;
        for (size_t k = 0; k < scaled.size(); ++k) scaled[k] *= factor[k];
        const Vector p = weights(kAmplitude, setting);
        if (largest_difference(p, scaled) < 1e-9) {
          meaning.kind = TermKind::kFactor;
        } else if (is_per_head(term) && largest_difference(p, plain) > 1e-6) {
          meaning.kind = TermKind::kSink;
        }
        return;
      }
      refuse("'{}' neither adds to the scores nor scales them", name);
    }
    setting[t] = random_block(term.order);
    const Vector got = minus(scores(kAmplitude, setting), scores(kAmplitude, neutral_));
    if (largest(got) < 1e-9 && is_per_head(term) &&
        largest_difference(weights(kAmplitude, setting), plain) > 1e-6) {
      // Scores keep their differences, and yet all weights shrink or grow.
      meaning.kind = TermKind::kSink;
    } else if (largest(got) < 1e-9) {
      // Constant along keys, it would not show even if it were added.
      meaning.kind = TermKind::kUnused;
    } else if (largest_difference(got, along_rows(spread(setting[t]))) < 1e-8) {
      meaning.kind = TermKind::kAdd;
    } else {
      const Fit slope = fit(along_rows(spread(setting[t])), got);
      refuse("'{}' is not added to the scores (factor {:.4f}, residual {:.1e})", name, slope.factor,
             slope.residual);
    }
  }

  // Whether exactly the masked weights are 0, rows without any key aside.
  bool masks_where(const Vector& p, const Vector& mask, double masking) const {
    const auto n = static_cast<size_t>(keys_);
    for (size_t row = 0; row < p.size() / n; ++row) {
      bool alive = false;
      for (size_t k = 0; k < n; ++k) alive = alive || mask[row * n + k] != masking;
      for (size_t k = 0; alive && k < n; ++k) {
        if ((p[row * n + k] == 0) != (mask[row * n + k] == masking)) return false;
      }
    }
    return true;
  }

  const GraphFacts& facts_;
  const BlackBox& box_;
  const std::vector<Term>& terms_;
  const CanonicalFactors& canonical_;
  std::mt19937_64 generator_{1};
  int64_t keys_ = 0;
  int64_t width_ = 0;
  int64_t columns_ = 0;  // of values
  Block query_;
  Block key_;
  Vector products_;
  std::vector<Block> neutral_;
  Meaning meaning_;
};

}  // namespace

Meaning infer_meaning(const GraphFacts& facts, const BlackBox& square,
                      const std::vector<Term>& terms) {
  return Prober(facts, square, terms).infer();
}

}  // namespace autosp::transforms::fusion
