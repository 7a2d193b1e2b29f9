#include "transforms/fuse_attention/flash_formulas.h"

#include <cmath>

namespace autosp::transforms::fusion {

std::string_view name_of(DeadRows dead_rows) {
  switch (dead_rows) {
    case DeadRows::kNone:
      return "none";
    case DeadRows::kUniform:
      return "uniform";
    case DeadRows::kZero:
      return "zero";
    case DeadRows::kUnmasked:
      return "unmasked";
    case DeadRows::kNan:
      return "nan";
  }
  return "";
}

namespace {

using Vector = std::vector<double>;

// One row of scores per (batch, head, query).
class Flash {
 public:
  Flash(const CanonicalFactors& canonical, const Sizes& sizes, const Meaning& meaning,
        const FlashOperands& from, DeadRows dead_rows, bool dead_row_gradient)
      : canonical_(canonical),
        sizes_(sizes),
        meaning_(meaning),
        dead_rows_(dead_rows),
        dead_row_gradient_(dead_row_gradient) {
    rows_ = concat({canonical.batch, canonical.heads()});
    queries_ = size(canonical.queries);
    keys_ = size(canonical.keys);
    width_ = size(canonical.width);
    value_width_ = size(canonical.value_width);
    query_ = repeated(from.operands.at(OperandRole::kQuery), canonical.queries, canonical.width);
    key_ = repeated(from.operands.at(OperandRole::kKey), canonical.keys, canonical.width);
    value_ = repeated(from.operands.at(OperandRole::kValue), canonical.keys, canonical.value_width);
    if (from.operands.contains(OperandRole::kOutputGradient)) {
      output_gradient_ = repeated(from.operands.at(OperandRole::kOutputGradient), canonical.queries,
                                  canonical.value_width);
    }
    const size_t count = size(concat({rows_, canonical.queries, canonical.keys}));
    bias_.assign(count, 0);
    factor_.assign(count, 1);
    kept_.assign(count, 1);
    scale_slope_.assign(count, 0);
    sink_.assign(size(rows_), meaning.known_sink);
    masked_.assign(count, false);
    const AtomList rows = concat({rows_, canonical.queries});
    row_factor_.assign(size(rows), 1);
    row_is_zero_.assign(size(rows), false);
    for (size_t t = 0; t < from.terms.size(); ++t) {
      const TermKind kind = meaning.terms[t].kind;
      if (kind == TermKind::kAdd || kind == TermKind::kScale) {
        const Vector values = spread(from.terms[t]);
        for (size_t k = 0; k < count; ++k) {
          if (kind == TermKind::kAdd) bias_[k] += values[k];
          if (kind != TermKind::kScale) continue;
          factor_[k] *= meaning.terms[t].divides ? 1 / values[k] : values[k];
          // Of 1 / x, -1 / x^2; there is one such term where its gradient is asked for.
          scale_slope_[k] = meaning.terms[t].divides ? -1 / (values[k] * values[k]) : 1;
        }
      }
      if (kind == TermKind::kFactor) {
        const Vector values = arranged(from.terms[t], rows, sizes).values;
        for (size_t k = 0; k < values.size(); ++k) {
          row_factor_[k] *= from.bools[t] ? 1 : values[k];
          const bool masks = (values[k] != 0) == meaning.terms[t].masking_value;
          row_is_zero_[k] = row_is_zero_[k] || (from.bools[t] && masks);
        }
      }
      if (kind == TermKind::kDrop) {
        const Vector values = spread(from.terms[t]);
        for (size_t k = 0; k < count; ++k) kept_[k] = values[k] == 0 ? 0 : meaning.kept_scale;
      }
      if (kind == TermKind::kSink) sink_ = arranged(from.terms[t], rows_, sizes_).values;
      if (from.masked[t].values.empty()) continue;
      const Vector mask = spread(from.masked[t]);
      for (size_t k = 0; k < count; ++k) masked_[k] = masked_[k] || mask[k] != 0;
    }
  }

  std::map<ResultRole, Block> run() {
    const size_t groups = size(rows_);
    output_.assign(groups * queries_ * value_width_, 0);
    query_gradient_.assign(groups * queries_ * width_, 0);
    key_gradient_.assign(groups * keys_ * width_, 0);
    value_gradient_.assign(groups * keys_ * value_width_, 0);
    sink_gradient_.assign(groups, 0);
    bias_gradient_.assign(bias_.size(), 0);
    scale_gradient_.assign(bias_.size(), 0);
    for (size_t group = 0; group < groups; ++group) {
      for (size_t i = 0; i < queries_; ++i) run_row(group, i);
    }
    std::map<ResultRole, Block> results;
    results[ResultRole::kOutput] = {canonical_.of(ResultRole::kOutput), output_};
    if (!output_gradient_.empty()) {
      results[ResultRole::kQueryGradient] = {canonical_.of(ResultRole::kQueryGradient),
                                             query_gradient_};
      results[ResultRole::kKeyGradient] = {canonical_.of(ResultRole::kKeyGradient),
                                           summed_over_groups(key_gradient_, keys_ * width_)};
      results[ResultRole::kValueGradient] = {
          canonical_.of(ResultRole::kValueGradient),
          summed_over_groups(value_gradient_, keys_ * value_width_)};
      results[ResultRole::kBiasGradient] = summed_onto(canonical_.bias_gradient, bias_gradient_);
      results[ResultRole::kScaleGradient] = summed_onto(canonical_.scale_gradient, scale_gradient_);
      results[ResultRole::kSinkGradient] = {canonical_.of(ResultRole::kSinkGradient),
                                            summed_over_batch(sink_gradient_)};
    }
    return results;
  }

 private:
  size_t size(const AtomList& atoms) const { return static_cast<size_t>(sizes_.product(atoms)); }

  // An operand once for every query head.
  Vector repeated(const Block& block, const AtomList& positions, const AtomList& width) const {
    return arranged(block, concat({rows_, positions, width}), sizes_).values;
  }
  Vector spread(const Block& block) const {
    return arranged(block, canonical_.full(), sizes_).values;
  }

  Vector summed_over_groups(const Vector& per_head, size_t block) const {
    const size_t groups = size(canonical_.groups);
    Vector result(per_head.size() / groups, 0);
    for (size_t k = 0; k < per_head.size(); ++k) {
      result[k / (block * groups) * block + k % block] += per_head[k];
    }
    return result;
  }

  // A gradient of every score, summed over what `order` lacks.
  Block summed_onto(const AtomList& order, const Vector& gradient) const {
    Block result{.order = order, .values = Vector(size(order), 0)};
    Block place = result;  // every entry's own number, spread over the scores
    for (size_t k = 0; k < place.values.size(); ++k) place.values[k] = static_cast<double>(k);
    const Vector places = spread(place);
    for (size_t k = 0; k < places.size(); ++k) {
      result.values[static_cast<size_t>(places[k])] += gradient[k];
    }
    return result;
  }

  Vector summed_over_batch(const Vector& per_row_group) const {
    Vector result(size(canonical_.heads()), 0);
    for (size_t k = 0; k < per_row_group.size(); ++k) {
      result[k % result.size()] += per_row_group[k];
    }
    return result;
  }

  // The weights of one row; `bend` is the softcap's derivative, `sink` the sink's own weight.
  Vector weights(size_t group, size_t i, Vector& bend, double& sink) const {
    Vector s(keys_);
    bend.assign(keys_, 1);
    bool dead = true;
    const size_t row = (group * queries_ + i) * keys_;
    for (size_t j = 0; j < keys_; ++j) {
      double dot = 0;
      for (size_t d = 0; d < width_; ++d) {
        dot += query_[(group * queries_ + i) * width_ + d] * key_[(group * keys_ + j) * width_ + d];
      }
      s[j] = meaning_.scale * dot * factor_[row + j];
      if (meaning_.softcap != 0) {
        const double t = std::tanh(s[j] / meaning_.softcap);
        bend[j] = 1 - t * t;
        s[j] = meaning_.softcap * t;
      }
      s[j] += bias_[row + j];
      dead = dead && masked_[row + j];
    }
    Vector p(keys_, 0);
    if (std::isfinite(sink_[group])) dead = false;  // the sink is seen
    sink = 0;
    if (dead && dead_rows_ != DeadRows::kUnmasked) {
      const double weight = dead_rows_ == DeadRows::kUniform ? 1.0 / static_cast<double>(keys_)
                            : dead_rows_ == DeadRows::kZero  ? 0
                                                             : NAN;
      p.assign(keys_, weight);
      return p;
    }
    double max = sink_[group];
    for (size_t j = 0; j < keys_; ++j) {
      if (dead || !masked_[row + j]) max = std::max(max, s[j]);
    }
    double sum = std::isfinite(sink_[group]) ? std::exp(sink_[group] - max) : 0;
    sink = sum;
    for (size_t j = 0; j < keys_; ++j) {
      if (dead || !masked_[row + j]) sum += p[j] = std::exp(s[j] - max);
    }
    for (double& weight : p) weight /= sum;
    sink /= sum;
    return p;
  }

  void run_row(size_t group, size_t i) {
    Vector bend;
    double sink = 0;
    const Vector p = weights(group, i, bend, sink);
    const size_t row = group * queries_ + i;
    double* output = &output_[row * value_width_];
    for (size_t j = 0; j < keys_; ++j) {
      for (size_t e = 0; e < value_width_; ++e) {
        output[e] += p[j] * kept_[row * keys_ + j] * value_[(group * keys_ + j) * value_width_ + e];
      }
    }
    if (!output_gradient_.empty()) run_row_back(group, i, p, bend, sink);
    // What multiplies the weights of a row multiplies its output, and the output's gradient.
    for (size_t e = 0; e < value_width_; ++e) output[e] = times_factor(row, output[e]);
  }

  double times_factor(size_t row, double x) const {
    return row_is_zero_[row] ? 0 : x * row_factor_[row];
  }

  // While the output lacks the row's factor.
  void run_row_back(size_t group, size_t i, const Vector& p, const Vector& bend, double sink) {
    const size_t row = group * queries_ + i;
    const double* output = &output_[row * value_width_];
    double delta = 0;
    bool dead = true;
    Vector gradient(value_width_);
    for (size_t e = 0; e < value_width_; ++e) {
      gradient[e] = times_factor(row, output_gradient_[row * value_width_ + e]);
      delta += gradient[e] * output[e];
    }
    for (size_t j = 0; j < keys_; ++j) dead = dead && masked_[row * keys_ + j];
    sink_gradient_[group] -= sink * delta;
    for (size_t j = 0; j < keys_; ++j) {
      double dp = 0;
      const double kept = kept_[row * keys_ + j];
      for (size_t e = 0; e < value_width_; ++e) {
        dp += gradient[e] * value_[(group * keys_ + j) * value_width_ + e];
        value_gradient_[(group * keys_ + j) * value_width_ + e] += p[j] * kept * gradient[e];
      }
      dp *= kept;
      double ds = p[j] * (dp - delta) * bend[j] * meaning_.scale * factor_[row * keys_ + j];
      const bool stopped = masked_[row * keys_ + j] && !(dead && dead_row_gradient_);
      if (stopped) ds = 0;
      bias_gradient_[row * keys_ + j] = stopped ? 0 : p[j] * (dp - delta);
      double product = 0;
      for (size_t d = 0; d < width_; ++d) {
        product += query_[row * width_ + d] * key_[(group * keys_ + j) * width_ + d];
      }
      scale_gradient_[row * keys_ + j] = stopped ? 0
                                                 : p[j] * (dp - delta) * bend[j] * meaning_.scale *
                                                       product * scale_slope_[row * keys_ + j];
      for (size_t d = 0; d < width_; ++d) {
        query_gradient_[row * width_ + d] += ds * key_[(group * keys_ + j) * width_ + d];
        key_gradient_[(group * keys_ + j) * width_ + d] += ds * query_[row * width_ + d];
      }
    }
  }

  const CanonicalFactors& canonical_;
  const Sizes& sizes_;
  const Meaning& meaning_;
  DeadRows dead_rows_;
  bool dead_row_gradient_;
  AtomList rows_;
  size_t queries_ = 0;
  size_t keys_ = 0;
  size_t width_ = 0;
  size_t value_width_ = 0;
  Vector query_, key_, value_, output_gradient_;
  Vector bias_, factor_, scale_slope_, kept_, sink_;
  Vector sink_gradient_, bias_gradient_, scale_gradient_;
  Vector row_factor_;              // of the weights
  std::vector<bool> row_is_zero_;  // whatever the weights are
  std::vector<bool> masked_;
  Vector output_, query_gradient_, key_gradient_, value_gradient_;
};

}  // namespace

std::map<ResultRole, Block> flash_attention(const CanonicalFactors& canonical, const Sizes& sizes,
                                            const Meaning& meaning, const FlashOperands& operands,
                                            DeadRows dead_rows, bool dead_row_gradient) {
  return Flash(canonical, sizes, meaning, operands, dead_rows, dead_row_gradient).run();
}

}  // namespace autosp::transforms::fusion
