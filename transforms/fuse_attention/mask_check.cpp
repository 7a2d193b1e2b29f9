#include "transforms/fuse_attention/mask_check.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace autosp::transforms::fusion {

using ir::Node;
using ir::Tensor;

namespace {

constexpr int kTrials = 4;  // every bit set, none, and twice at random
constexpr size_t kQueries = 5;
constexpr size_t kKeys = 20;

using Vector = std::vector<double>;

// Some of the indices of every factor of the scores.
struct Sample {
  std::unordered_map<AtomId, std::vector<int64_t>> indices;

  Sizes sizes() const {
    std::unordered_map<AtomId, int64_t> result;
    for (const auto& [atom, chosen] : indices) result[atom] = static_cast<int64_t>(chosen.size());
    return Sizes(std::move(result));
  }
};

class Checker {
 public:
  Checker(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
          const CanonicalFactors& canonical, const Term& term, const TermParts& parts)
      : facts_(facts),
        cutout_(cutout),
        graph_(cutout.graph),
        factors_(factors),
        canonical_(canonical),
        term_(term),
        parts_(parts),
        whole_(factors, canonical),
        full_(canonical.full()) {
    for (const BiasPart& part : parts.biases) {
      for (ValueId value : part.product) collect(value);
    }
    factors_of_biases_ = leaves_.size();
    collect(term.uses[0]);
    for (const Literal& literal : parts.literals) {
      if (literal.value) collect(literal.value);
      if (literal.key_segment) collect(literal.key_segment);
    }
    std::ranges::sort(nodes_);
  }

  void check(const TermMeaning& meaning, bool has_sink) {
    for (trial_ = 0; trial_ < kTrials; ++trial_) {
      choose_sample();
      evaluate();
      const Vector entries = spread(term_.uses[0]);
      const std::vector<bool> seen = visible(entries.size());
      const bool equal = term_.is_bool() ? masks_alike(entries, seen, meaning.masking_value)
                                         : adds_alike(entries, seen, has_sink);
      if (!equal) {
        refuse("'{}' is not the mask that was read in it", graph_.name_of(term_.uses[0]));
      }
    }
  }

 private:
  // The operators that compute a value, and its leaves.
  void collect(ValueId value) {
    if (!reached_.insert(value).second) return;
    const NodeId producer = graph_.value(value).producer;
    if (graph_.producer(value) == nullptr) {
      leaves_.push_back(value);
      const auto uniform = cutout_.uniform.find(value);
      if (uniform != cutout_.uniform.end()) numbers_.push_back(uniform->second);
      return;
    }
    nodes_.push_back(producer);
    const Node& node = graph_.node(producer);
    const auto& is_data = factors_.analysis().node(producer).is_data;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (node.inputs[k] && is_data[k]) collect(node.inputs[k]);
    }
  }

  // --- Where.

  int64_t below(int64_t limit) {
    return std::uniform_int_distribution<int64_t>(0, limit - 1)(generator_);
  }

  void choose(const AtomList& atoms, size_t count, const std::vector<int64_t>& wanted = {}) {
    for (const AtomId atom : atoms) {
      const int64_t size = whole_.of(atom);
      std::set<int64_t> chosen;
      for (const int64_t index : wanted) {
        if (index >= 0 && index < size) chosen.insert(index);
      }
      const auto most = std::min(count, static_cast<size_t>(size));
      while (chosen.size() < most) chosen.insert(below(size));
      sample_.indices[atom].assign(chosen.begin(), chosen.end());
    }
  }

  void choose_sample() {
    sample_.indices.clear();
    choose(canonical_.batch, 2);
    choose(canonical_.heads(), 2);
    choose(canonical_.queries, kQueries, {0, whole_.product(canonical_.queries) - 1});
    std::vector<int64_t> edges;
    if (canonical_.queries.size() == 1 && canonical_.keys.size() == 1) {
      for (const int64_t i : sample_.indices[canonical_.queries[0]]) {
        edges.push_back(i);
        for (const Literal& literal : parts_.literals) {
          for (const SharedIntegers& bound : {literal.begin, literal.end}) {
            if (!bound) continue;
            const int64_t edge = (*bound)[static_cast<size_t>(i)];
            edges.insert(edges.end(), {edge - 1, edge});
          }
        }
      }
    }
    choose(canonical_.keys, kKeys, edges);
    sizes_ = sample_.sizes();
    key_places_ = places(canonical_.keys);
  }

  // The graph's own position that each entry of the scores stands for.
  Vector places(const AtomList& atoms) const {
    Vector result(static_cast<size_t>(sizes_->product(full_)), 0);
    for (const AtomId atom : atoms) {
      const auto& chosen = sample_.indices.at(atom);
      const Block block{.order = {atom}, .values = {chosen.begin(), chosen.end()}};
      const Vector at = arranged(block, full_, *sizes_).values;
      const auto size = static_cast<double>(whole_.of(atom));
      for (size_t k = 0; k < result.size(); ++k) result[k] = result[k] * size + at[k];
    }
    return result;
  }

  // --- What every value holds there.

  ir::Shape shape_of(ValueId value) const {
    ir::Shape shape;
    for (const AtomList& atoms : factors_.dims(value)) shape.push_back(sizes_->product(atoms));
    return shape;
  }

  // Entry of a row-major array over `order` for every entry of the sample over the same.
  std::vector<int64_t> places_in(const AtomList& order) const {
    std::vector<int64_t> result = {0};
    for (const AtomId atom : order) {
      std::vector<int64_t> next;
      for (const int64_t before : result) {
        for (const int64_t index : sample_.indices.at(atom)) {
          next.push_back(before * whole_.of(atom) + index);
        }
      }
      result = std::move(next);
    }
    return result;
  }

  // Factors of biases are between 0 and 1, for the others may be the lowest number there is.
  Tensor leaf(ValueId value, bool small) {
    const ir::Type type{graph_.type(value).dtype, shape_of(value)};
    const auto uniform = cutout_.uniform.find(value);
    if (uniform != cutout_.uniform.end()) return Tensor::filled(type, uniform->second);
    const auto known = known_tensor(facts_, cutout_.original[value.index()]);
    const size_t size = element_size(type.dtype);
    Tensor result(type);
    std::byte* to = result.mutable_bytes();
    if (known) {
      for (const int64_t place : places_in(factors_.atoms(value))) {
        const auto from = known->bytes().subspan(static_cast<size_t>(place) * size, size);
        to = std::ranges::copy(from, to).out;
      }
      return result;
    }
    const auto choice = two_numbers(facts_, cutout_.original[value.index()]);
    for (int64_t k = 0; k < type.num_elements(); ++k) {
      double entry = random_entry(type.dtype, small);
      if (choice) entry = below(2) == 0 ? choice->first : choice->second;
      const Tensor one = Tensor::scalar(type.dtype, entry);
      to = std::ranges::copy(one.bytes(), to).out;
    }
    return result;
  }

  // Bits, numbers that the mask is compared with, positions, and their neighbours.
  double random_entry(ir::DataType dtype, bool small) {
    if (is_floating(dtype) && below(2) == 0) {
      return std::uniform_real_distribution<double>(0, 1)(generator_);
    }
    if (dtype == ir::DataType::kBool && trial_ < 2) return trial_ == 0 ? 1 : 0;
    if (small || dtype == ir::DataType::kBool || below(2) == 0)
      return static_cast<double>(below(2));
    double number = 0;
    if (!numbers_.empty() && below(2) == 0) {
      number = numbers_[static_cast<size_t>(below(static_cast<int64_t>(numbers_.size())))];
    } else if (!is_floating(dtype)) {
      const auto at = static_cast<size_t>(below(static_cast<int64_t>(key_places_.size())));
      number = key_places_[at];
    }
    number = std::floor(number) + static_cast<double>(below(3) - 1);
    return std::fabs(number) < 1e6 && (number >= 0 || is_floating(dtype)) ? number : 0;
  }

  void evaluate() {
    values_.clear();
    for (size_t k = 0; k < leaves_.size(); ++k) {
      values_[leaves_[k]] = leaf(leaves_[k], k < factors_of_biases_);
    }
    for (const NodeId id : nodes_) {
      const Node& node = graph_.node(id);
      const auto& is_data = factors_.analysis().node(id).is_data;
      std::vector<Tensor> operands;
      for (size_t k = 0; k < node.inputs.size(); ++k) {
        const ValueId input = node.inputs[k];
        if (!input) {
          operands.emplace_back();
        } else if (is_data[k]) {
          operands.push_back(values_.at(input));
        } else if (node.is("Reshape") || node.is("Expand")) {
          operands.push_back(Tensor::int64s(shape_of(node.outputs[0])));
        } else {
          operands.push_back(graph_.constant(input));
        }
      }
      const ir::Type type{graph_.type(node.outputs[0]).dtype, shape_of(node.outputs[0])};
      values_[node.outputs[0]] = evaluate_node(node, operands, {type})[0];
    }
  }

  Vector spread(ValueId value) const {
    const Tensor& tensor = values_.at(value);
    Block block{.order = factors_.atoms(value), .values = {}};
    for (int64_t k = 0; k < tensor.num_elements(); ++k) {
      block.values.push_back(tensor.value_as_double(k));
    }
    return arranged(block, full_, *sizes_).values;
  }

  // A known vector [batch or 1, positions].
  Vector spread(const std::vector<int64_t>& vector, const AtomList& positions) const {
    const bool batched = static_cast<int64_t>(vector.size()) != whole_.product(positions);
    const AtomList order = batched ? concat({canonical_.batch, positions}) : positions;
    Block block{.order = order, .values = {}};
    for (const int64_t place : places_in(order)) {
      block.values.push_back(static_cast<double>(vector[static_cast<size_t>(place)]));
    }
    return arranged(block, full_, *sizes_).values;
  }

  // --- What the parts say.

  std::vector<bool> visible(size_t count) const {
    std::vector<bool> result(count, true);
    for (const Literal& literal : parts_.literals) {
      const std::vector<bool> one = holds_of(literal);
      for (size_t k = 0; k < count; ++k) result[k] = result[k] && one[k];
    }
    return result;
  }

  std::vector<bool> holds_of(const Literal& literal) const {
    std::vector<bool> result(key_places_.size());
    const auto set = [&](const auto& entry) {
      for (size_t k = 0; k < result.size(); ++k) result[k] = entry(k);
    };
    using Kind = Literal::Kind;
    if (literal.kind == Kind::kInterval) {
      const Vector begin = spread(*literal.begin, canonical_.queries);
      const Vector end = spread(*literal.end, canonical_.queries);
      set([&](size_t k) { return begin[k] <= key_places_[k] && key_places_[k] < end[k]; });
      return result;
    }
    if (literal.kind == Kind::kKnownKeys) {
      const Vector known = spread(*literal.known, canonical_.keys);
      set([&](size_t k) { return known[k] != 0; });
      return result;
    }
    const Vector value = spread(literal.value);
    if (literal.kind == Kind::kSameSegment) {
      const Vector key = spread(literal.key_segment);
      set([&](size_t k) { return key[k] == value[k]; });
    } else if (literal.kind == Kind::kKeys || literal.kind == Kind::kQueries) {
      const auto& condition = literal.condition;
      set([&](size_t k) {
        const bool bit =
            condition ? holds(value[k], condition->comparison, condition->number) : value[k] != 0;
        return bit == literal.positive;
      });
    } else {
      const auto offset = static_cast<double>(literal.offset);
      const bool from = literal.kind == Kind::kBegin;
      const Vector end = literal.end ? spread(*literal.end, canonical_.queries) : Vector();
      set([&](size_t k) {
        const bool before = !end.empty() && key_places_[k] < end[k];
        return before || (key_places_[k] >= value[k] + offset) == from;
      });
    }
    return result;
  }

  Vector bias(size_t count) const {
    Vector total(count, 0);
    for (const BiasPart& part : parts_.biases) {
      Vector one(count, part.factor);
      if (part.known) {
        Block block{.order = part.known->order, .values = {}};
        for (const int64_t place : places_in(block.order)) {
          block.values.push_back(part.known->values[static_cast<size_t>(place)]);
        }
        one = arranged(block, full_, *sizes_).values;
      }
      for (ValueId value : part.product) {
        const Vector factor = spread(value);
        for (size_t k = 0; k < count; ++k) one[k] *= factor[k];
      }
      for (size_t k = 0; k < count; ++k) total[k] += one[k];
    }
    return total;
  }

  // --- The comparison.

  static bool masks_alike(const Vector& entries, const std::vector<bool>& seen, bool masking) {
    for (size_t k = 0; k < entries.size(); ++k) {
      if (((entries[k] != 0) != masking) != seen[k]) return false;
    }
    return true;
  }

  // Row by row; but for a sink, up to what is the same along the row.
  bool adds_alike(const Vector& entries, const std::vector<bool>& seen, bool has_sink) const {
    const Vector biases = bias(entries.size());
    const auto keys = static_cast<size_t>(sizes_->product(canonical_.keys));
    const double relative = 32 * epsilon_of(term_.dtype);
    for (size_t row = 0; row < entries.size(); row += keys) {
      double shift = 0;
      double largest = 0;
      for (size_t k = row + keys; k-- > row;) {
        if (!seen[k]) continue;
        if (!std::isfinite(entries[k])) return false;
        if (!has_sink) shift = entries[k] - biases[k];
        largest = std::max({largest, std::fabs(entries[k]), std::fabs(biases[k])});
      }
      for (size_t k = row; k < row + keys; ++k) {
        const double rest = entries[k] - biases[k] - shift;
        const bool equal =
            seen[k] ? std::fabs(rest) <= relative * largest : rest <= 0.9 * kMaskingNumber;
        if (!equal) return false;
      }
    }
    return true;
  }

  const GraphFacts& facts_;
  const Cutout& cutout_;
  const ir::Graph& graph_;
  const LocalFactors& factors_;
  const CanonicalFactors& canonical_;
  const Term& term_;
  const TermParts& parts_;
  const Sizes whole_;
  const AtomList full_;
  std::mt19937_64 generator_{11};
  int trial_ = 0;
  std::unordered_set<ValueId> reached_;
  std::vector<NodeId> nodes_;  // of the cut-out
  std::vector<ValueId> leaves_;
  size_t factors_of_biases_ = 0;  // so many leaves, the first ones, are multiplied with others
  Vector numbers_;                // that leaves are known to hold
  Sample sample_;
  std::optional<Sizes> sizes_;
  Vector key_places_;
  std::unordered_map<ValueId, Tensor> values_;
};

}  // namespace

void check_parts(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
                 const CanonicalFactors& canonical, const Term& term, const TermMeaning& meaning,
                 const TermParts& parts, bool has_sink) {
  if (parts.kept) return;
  Checker(facts, cutout, factors, canonical, term, parts).check(meaning, has_sink);
}

}  // namespace autosp::transforms::fusion
