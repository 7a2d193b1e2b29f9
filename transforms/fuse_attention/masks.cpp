#include "transforms/fuse_attention/masks.h"

#include <algorithm>
#include <cmath>

#include "reference/kernels.h"
#include "transforms/canonicalize/constants.h"

namespace autosp::transforms::fusion {

using ir::Graph;
using ir::Node;
using ir::Tensor;

namespace {

constexpr int64_t kMostKnownElements = int64_t{1} << 24;

// What stops the taking apart of a term; caught in take_apart.
struct NotUnderstood {
  std::string why;
};

std::optional<Tensor> evaluate_known(const GraphFacts& facts, ValueId value, int& budget) {
  const Graph& graph = facts.graph();
  if (graph.is_constant(value)) return graph.constant(value);
  const Node* node = graph.producer(value);
  if (node == nullptr || is_random(*node) || !node->domain.empty() || --budget < 0) {
    return std::nullopt;
  }
  if (graph.type(value).num_elements() > kMostKnownElements) return std::nullopt;
  std::vector<Tensor> operands;
  for (ValueId input : node->inputs) {
    operands.emplace_back();
    if (!input) continue;
    auto operand = evaluate_known(facts, input, budget);
    if (!operand) return std::nullopt;
    operands.back() = *operand;
  }
  if (reference::find_kernel(node->domain, node->op) == nullptr) return std::nullopt;
  return reference::evaluate(graph, *node,
                             operands)[static_cast<size_t>(graph.value(value).result_index)];
}

}  // namespace

std::optional<Tensor> known_tensor(const GraphFacts& facts, ValueId value) {
  int budget = 500;  // nodes
  return evaluate_known(facts, value, budget);
}

namespace {

class Dissector {
 public:
  Dissector(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
            const CanonicalFactors& canonical)
      : facts_(facts),
        cutout_(cutout),
        graph_(cutout.graph),
        factors_(factors),
        canonical_(canonical),
        sizes_(factors, canonical) {
    queries_ = sizes_.product(canonical.queries);
    keys_ = sizes_.product(canonical.keys);
  }

  TermParts take_apart(const Term& term, const TermMeaning& meaning) {
    try {
      if (term.is_bool()) {
        conjunction(term.uses[0], !meaning.masking_value);
      } else {
        sum(term.uses[0]);
      }
      return std::move(parts_);
    } catch (const NotUnderstood& reason) {
      parts_ = {};
      try {
        read_entries(term.uses[0], term.is_bool(), !meaning.masking_value);
        return std::move(parts_);
      } catch (const NotUnderstood&) {
        parts_ = {};
        parts_.kept = true;
        parts_.why_kept = reason.why;
        return std::move(parts_);
      }
    }
  }

 private:
  template <typename... Args>
  [[noreturn]] void stop(fmt::format_string<Args...> format, Args&&... args) const {
    throw NotUnderstood{fmt::format(format, std::forward<Args>(args)...)};
  }

  std::optional<double> uniform(ValueId value) const {
    const auto found = cutout_.uniform.find(value);
    if (found != cutout_.uniform.end()) return found->second;
    return std::nullopt;
  }

  // Which indices a value has.
  struct Extent {
    bool batch = false;
    bool heads = false;
    bool queries = false;
    bool keys = false;
  };
  Extent extent_of(ValueId value) const {
    Extent extent;
    for (const AtomId atom : factors_.atoms(value)) {
      const auto among = [&](const AtomList& list) {
        return std::ranges::find(list, atom) != list.end();
      };
      extent.batch = extent.batch || among(canonical_.batch);
      extent.heads = extent.heads || among(canonical_.heads());
      extent.queries = extent.queries || among(canonical_.queries);
      extent.keys = extent.keys || among(canonical_.keys);
    }
    return extent;
  }

  // --- Masks: what has to hold for `value` to be `wanted`.

  void conjunction(ValueId value, bool wanted) {
    if (const auto number = uniform(value)) {
      if ((*number != 0) != wanted) parts_.literals.push_back(nothing());
      return;
    }
    const Node* node = graph_.producer(value);
    const Extent extent = extent_of(value);
    if (node == nullptr) return leaf(value, extent, wanted);
    if (node->is("Not")) return conjunction(node->inputs[0], !wanted);
    if (is_view(*node) || node->is("Expand")) return conjunction(node->inputs[0], wanted);
    if ((node->is("And") && wanted) || (node->is("Or") && !wanted)) {
      conjunction(node->inputs[0], wanted);
      return conjunction(node->inputs[1], wanted);
    }
    if (node->is("Cast") && graph_.type(node->inputs[0]).dtype == ir::DataType::kBool) {
      return conjunction(node->inputs[0], wanted);
    }
    if (node->is("Where")) return choice(*node, wanted);
    if (const auto comparison = comparison_of(*node)) return compare(*node, *comparison, wanted);
    stop("'{}' is computed by {}", graph_.name_of(value), node->op);
  }

  // Where(c, a, false) is c and a; Where(c, true, b) is c or b.
  void choice(const Node& node, bool wanted) {
    const auto a = uniform(node.inputs[1]);
    const auto b = uniform(node.inputs[2]);
    if (wanted && b == 0.0) {
      conjunction(node.inputs[0], true);
      return conjunction(node.inputs[1], true);
    }
    if (wanted && a == 0.0) {
      conjunction(node.inputs[0], false);
      return conjunction(node.inputs[2], true);
    }
    if (!wanted && a && *a != 0) {
      conjunction(node.inputs[0], false);
      return conjunction(node.inputs[2], false);
    }
    if (!wanted && b && *b != 0) {
      conjunction(node.inputs[0], true);
      return conjunction(node.inputs[1], false);
    }
    stop("'{}' chooses between masks", graph_.name_of(node.outputs[0]));
  }

  Literal nothing() const {
    const auto n = static_cast<size_t>(queries_);
    return {.kind = Literal::Kind::kInterval,
            .begin = std::vector<int64_t>(n, 0),
            .end = std::vector<int64_t>(n, 0)};
  }

  void leaf(ValueId value, const Extent& extent, bool wanted) {
    const std::string& name = graph_.name_of(value);
    if (extent.queries && extent.keys) return read_entries(value, true, wanted);
    if (extent.heads) stop("'{}' is given over heads", name);
    if (graph_.type(value).dtype != ir::DataType::kBool) stop("'{}' is no mask", name);
    parts_.literals.push_back(
        {.kind = extent.queries ? Literal::Kind::kQueries : Literal::Kind::kKeys,
         .value = value,
         .positive = wanted});
  }

  static std::optional<Comparison> comparison_of(const Node& node) {
    static const std::map<std::string, Comparison> kOps = {
        {"Less", Comparison::kLess},
        {"LessOrEqual", Comparison::kLessOrEqual},
        {"Greater", Comparison::kGreater},
        {"GreaterOrEqual", Comparison::kGreaterOrEqual},
        {"Equal", Comparison::kEqual}};
    const auto found = kOps.find(node.op);
    if (!node.domain.empty() || found == kOps.end()) return std::nullopt;
    return found->second;
  }

  static Comparison swapped(Comparison comparison) {
    switch (comparison) {
      case Comparison::kLess:
        return Comparison::kGreater;
      case Comparison::kLessOrEqual:
        return Comparison::kGreaterOrEqual;
      case Comparison::kGreater:
        return Comparison::kLess;
      case Comparison::kGreaterOrEqual:
        return Comparison::kLessOrEqual;
      case Comparison::kEqual:
        break;
    }
    return Comparison::kEqual;
  }

  static Comparison negated(Comparison comparison) {
    switch (comparison) {
      case Comparison::kLess:
        return Comparison::kGreaterOrEqual;
      case Comparison::kLessOrEqual:
        return Comparison::kGreater;
      case Comparison::kGreater:
        return Comparison::kLessOrEqual;
      case Comparison::kGreaterOrEqual:
        return Comparison::kLess;
      case Comparison::kEqual:
        break;
    }
    return Comparison::kEqual;
  }

  // Through what repeats, rearranges or converts without changing numbers that matter.
  ValueId stripped(ValueId value) const {
    while (const Node* node = graph_.producer(value)) {
      if (!is_view(*node) && !node->is("Expand") && !node->is("Cast")) break;
      value = node->inputs[0];
    }
    return value;
  }

  void compare(const Node& node, Comparison comparison, bool wanted) {
    const std::string& name = graph_.name_of(node.outputs[0]);
    // A mask that was made a number and is compared with one.
    for (const size_t k : {size_t{0}, size_t{1}}) {
      const auto number = uniform(node.inputs[1 - k]);
      const ValueId other = stripped(node.inputs[k]);
      if (!number || graph_.type(other).dtype != ir::DataType::kBool) continue;
      if (comparison == Comparison::kEqual && (*number == 0 || *number == 1)) {
        return conjunction(other, wanted == (*number == 1));
      }
    }
    if (!wanted) {
      if (comparison == Comparison::kEqual) stop("'{}' asks for what is unequal", name);
      comparison = negated(comparison);
    }
    ValueId left = stripped(node.inputs[0]);
    ValueId right = stripped(node.inputs[1]);
    double shift = 0;  // left comparison right + shift
    if (uniform(left)) {
      std::swap(left, right);
      comparison = swapped(comparison);
    }
    const Node* difference = graph_.producer(left);
    if (uniform(right) && difference != nullptr && difference->is("Sub")) {
      shift = *uniform(right);
      left = stripped(difference->inputs[0]);
      right = stripped(difference->inputs[1]);
    }
    literal(left, comparison, right, shift, name);
  }

  void literal(ValueId left, Comparison comparison, ValueId right, double shift,
               const std::string& name) {
    if (graph_.producer(left) != nullptr || graph_.producer(right) != nullptr) {
      stop("'{}' compares more than two vectors", name);
    }
    Extent key = extent_of(left);
    Extent query = extent_of(right);
    // key comparison query + shift
    if (key.queries || query.keys) {
      std::swap(left, right);
      std::swap(key, query);
      comparison = swapped(comparison);
      shift = -shift;
    }
    if (key.queries || query.keys || key.heads || query.heads) {
      stop("'{}' compares matrices", name);
    }
    const auto key_vector = vector_over(left, canonical_.keys, 0);
    const auto query_vector = vector_over(right, canonical_.queries, shift);
    if (key_vector && query_vector) {
      if (auto found = compare_vectors(*key_vector, comparison, *query_vector)) {
        parts_.literals.push_back({.kind = Literal::Kind::kInterval,
                                   .begin = std::move(found->begin),
                                   .end = std::move(found->end)});
        return;
      }
    }
    const bool integers =
        is_integer(graph_.type(left).dtype) && is_integer(graph_.type(right).dtype);
    if (comparison == Comparison::kEqual && shift == 0 && integers) {
      parts_.literals.push_back(
          {.kind = Literal::Kind::kSameSegment, .value = right, .key_segment = left});
      return;
    }
    if (key_vector && is_integer(graph_.type(right).dtype) && counts_up(*key_vector) &&
        shift == std::floor(shift)) {
      return bound(right, comparison, static_cast<int64_t>(shift - (*key_vector)[0]), name);
    }
    stop("'{}' compares vectors that are not known before the run", name);
  }

  static bool counts_up(const std::vector<double>& vector) {
    for (size_t k = 1; k < vector.size(); ++k) {
      if (vector[k] != vector[0] + static_cast<double>(k)) return false;
    }
    return true;
  }

  // j comparison value[i] + offset
  void bound(ValueId value, Comparison comparison, int64_t offset, const std::string& name) {
    const auto add = [&](Literal::Kind kind, int64_t by) {
      parts_.literals.push_back({.kind = kind, .value = value, .offset = offset + by});
    };
    switch (comparison) {
      case Comparison::kLess:
        return add(Literal::Kind::kEnd, 0);
      case Comparison::kLessOrEqual:
        return add(Literal::Kind::kEnd, 1);
      case Comparison::kGreater:
        return add(Literal::Kind::kBegin, 1);
      case Comparison::kGreaterOrEqual:
        return add(Literal::Kind::kBegin, 0);
      case Comparison::kEqual:
        break;
    }
    stop("'{}' sees one key per query", name);
  }

  // The known elements of a value along one index, plus `shift`; equal along all others.
  std::optional<std::vector<double>> vector_over(ValueId value, const AtomList& index,
                                                 double shift) const {
    std::vector<double> result(static_cast<size_t>(sizes_.product(index)));
    if (const auto number = uniform(value)) {
      std::ranges::fill(result, *number + shift);
      return result;
    }
    const auto tensor = known_tensor(facts_, cutout_.original[value.index()]);
    if (!tensor) return std::nullopt;
    const Block block = block_of(*tensor, value);
    AtomList order;
    for (const AtomId atom : block.order) {
      if (std::ranges::find(index, atom) == index.end()) order.push_back(atom);
    }
    const Block rows = arranged(block, concat({order, index}), sizes_);
    for (size_t k = 0; k < rows.values.size(); ++k) {
      double& entry = result[k % result.size()];
      if (k >= result.size() && rows.values[k] + shift != entry) return std::nullopt;
      entry = rows.values[k] + shift;
    }
    return result;
  }

  Block block_of(const Tensor& tensor, ValueId value) const {
    Block block{.order = factors_.atoms(value), .values = {}};
    block.values.reserve(static_cast<size_t>(tensor.num_elements()));
    for (int64_t k = 0; k < tensor.num_elements(); ++k) {
      block.values.push_back(tensor.value_as_double(k));
    }
    return block;
  }

  // --- Biases: the summands of `value`.

  void mask_by(double number) {
    if (parts_.number && *parts_.number != number) parts_.several_numbers = true;
    parts_.number = std::min(number, parts_.number.value_or(number));
  }

  void sum(ValueId value) {
    if (uniform(value) && std::isfinite(*uniform(value)) && *uniform(value) > kMaskingNumber) {
      return;  // the same for all keys
    }
    const Node* node = graph_.producer(value);
    const Extent extent = extent_of(value);
    if (node == nullptr || !(extent.queries && extent.keys)) {
      if (extent.queries && extent.keys) return read_entries(value, false, true);
      parts_.biases.push_back({.product = {value}});
      return;
    }
    if (node->is("Add") || node->is("Sum")) {
      for (ValueId input : node->inputs) sum(input);
      return;
    }
    const bool floats = is_floating(graph_.type(node->inputs[0]).dtype);
    if (is_view(*node) || node->is("Expand") || (node->is("Cast") && floats)) {
      return sum(node->inputs[0]);
    }
    if (node->is("Where")) return masked_sum(*node);
    if (node->is("Mul")) {
      for (const size_t k : {size_t{0}, size_t{1}}) {
        const auto number = uniform(node->inputs[1 - k]);
        if (number && *number < kMaskingNumber && masking_bits(node->inputs[k], *number)) return;
      }
    }
    if (linear(value, {}, 1)) return;
    stop("'{}' is computed by {}", graph_.name_of(value), node->op);
  }

  void masked_sum(const Node& node) {
    const auto a = uniform(node.inputs[1]);
    const auto b = uniform(node.inputs[2]);
    if (a && *a < kMaskingNumber && !(b && *b < kMaskingNumber)) {
      mask_by(*a);
      conjunction(node.inputs[0], false);
      return sum(node.inputs[2]);
    }
    if (b && *b < kMaskingNumber && !(a && *a < kMaskingNumber)) {
      mask_by(*b);
      conjunction(node.inputs[0], true);
      return sum(node.inputs[1]);
    }
    stop("'{}' chooses between biases", graph_.name_of(node.outputs[0]));
  }

  // A bool made a number, or 1 less that, times a masking number.
  bool masking_bits(ValueId value, double number) {
    bool masked_where = true;
    const Node* node = graph_.producer(value);
    if (node != nullptr && node->is("Sub") && uniform(node->inputs[0]) == 1.0) {
      masked_where = false;
      value = node->inputs[1];
    }
    value = stripped(value);
    if (graph_.type(value).dtype != ir::DataType::kBool) return false;
    mask_by(number);
    conjunction(value, !masked_where);
    return true;
  }

  // Products of vectors, summed: slope * (j - i) is slope * j, less what is constant along keys.
  bool linear(ValueId value, std::vector<ValueId> product, double factor) {
    if (const auto number = uniform(value)) {
      if (product.empty()) return true;
      return linear_end(std::move(product), factor * *number);
    }
    const Node* node = graph_.producer(value);
    const Extent extent = extent_of(value);
    if (node == nullptr) {
      if (extent.queries && extent.keys) return false;
      product.push_back(value);
      return linear_end(std::move(product), factor);
    }
    const bool integers = is_integer(graph_.type(node->inputs[0]).dtype);
    if (is_view(*node) || node->is("Expand") || node->is("Cast")) {
      if (node->is("Cast") && !integers && !is_floating(graph_.type(node->inputs[0]).dtype)) {
        return false;
      }
      return linear(node->inputs[0], std::move(product), factor);
    }
    if (node->is("Neg")) return linear(node->inputs[0], std::move(product), -factor);
    if (node->is("Add")) {
      return linear(node->inputs[0], product, factor) && linear(node->inputs[1], product, factor);
    }
    if (node->is("Sub")) {
      return linear(node->inputs[0], product, factor) && linear(node->inputs[1], product, -factor);
    }
    if (node->is("Mul")) {
      for (const size_t k : {size_t{0}, size_t{1}}) {
        const ValueId one = stripped(node->inputs[k]);
        if (const auto number = uniform(one)) {
          return linear(node->inputs[1 - k], std::move(product), factor * *number);
        }
        const Extent other = extent_of(one);
        if (graph_.producer(one) != nullptr || (other.queries && other.keys)) continue;
        product.push_back(one);
        return linear(node->inputs[1 - k], std::move(product), factor);
      }
    }
    return false;
  }

  bool linear_end(std::vector<ValueId> product, double factor) {
    Extent whole;
    for (ValueId value : product) {
      const Extent extent = extent_of(value);
      whole.queries = whole.queries || extent.queries;
      whole.keys = whole.keys || extent.keys;
    }
    if (whole.queries && whole.keys) return false;
    if (whole.keys) parts_.biases.push_back({.product = std::move(product), .factor = factor});
    return true;  // without keys: constant along every row
  }

  // --- Known entries over queries and keys.

  void read_entries(ValueId value, bool is_mask, bool wanted) {
    const auto tensor = known_tensor(facts_, cutout_.original[value.index()]);
    if (!tensor || tensor->num_elements() > kMostKnownElements) {
      stop("'{}' is given over queries and keys", graph_.name_of(value));
    }
    const Block entries = arranged(
        block_of(*tensor, value),
        [&] {
          AtomList order;
          for (const AtomId atom : canonical_.full()) {
            const AtomList held = factors_.atoms(value);
            const bool position = atom == canonical_.queries[0] || atom == canonical_.keys[0];
            if (position || std::ranges::find(held, atom) != held.end()) order.push_back(atom);
          }
          return order;
        }(),
        sizes_);
    const auto matrix = static_cast<size_t>(queries_ * keys_);
    const size_t copies = entries.values.size() / matrix;
    double number = 0;
    std::vector<bool> visible(entries.values.size());
    for (size_t k = 0; k < visible.size(); ++k) {
      const double entry = entries.values[k];
      visible[k] = is_mask ? (entry != 0) == wanted : entry > kMaskingNumber;
      if (!is_mask && !visible[k]) number = std::min(number, entry);
    }
    if (!is_mask && number != 0) mask_by(number);
    read_mask(value, visible, copies);
    if (!is_mask) read_bias(value, entries, visible, copies);
  }

  void read_mask(ValueId value, const std::vector<bool>& visible, size_t copies) {
    const auto matrix = static_cast<size_t>(queries_ * keys_);
    const bool equal = [&] {
      for (size_t k = matrix; k < visible.size(); ++k) {
        if (visible[k] != visible[k % matrix]) return false;
      }
      return true;
    }();
    if (!equal && extent_of(value).heads)
      stop("in '{}' heads see different keys", graph_.name_of(value));
    RowIntervals all;
    for (size_t copy = 0; copy < (equal ? 1 : copies); ++copy) {
      const auto begin = visible.begin() + static_cast<std::ptrdiff_t>(copy * matrix);
      const std::vector<bool> one(begin, begin + static_cast<std::ptrdiff_t>(matrix));
      const auto found = find_row_intervals(one, queries_, keys_);
      if (!found) stop("in '{}' queries see keys with gaps", graph_.name_of(value));
      all.begin.insert(all.begin.end(), found->begin.begin(), found->begin.end());
      all.end.insert(all.end.end(), found->end.begin(), found->end.end());
      all.keys.insert(all.keys.end(), found->keys.begin(), found->keys.end());
    }
    const bool every_key = std::ranges::all_of(all.keys, [](int64_t seen) { return seen != 0; });
    if (!every_key) {
      parts_.literals.push_back({.kind = Literal::Kind::kKnownKeys, .known = std::move(all.keys)});
    }
    parts_.literals.push_back({.kind = Literal::Kind::kInterval,
                               .begin = std::move(all.begin),
                               .end = std::move(all.end)});
  }

  void read_bias(ValueId value, const Block& entries, const std::vector<bool>& visible,
                 size_t copies) {
    const auto matrix = static_cast<size_t>(queries_ * keys_);
    AtomList order = entries.order;
    std::erase(order, canonical_.queries[0]);
    Block vectors{.order = order, .values = {}};
    bool any = false;
    for (size_t copy = 0; copy < copies; ++copy) {
      const auto at = static_cast<std::ptrdiff_t>(copy * matrix);
      const auto end = at + static_cast<std::ptrdiff_t>(matrix);
      const auto vector =
          find_key_vector({entries.values.begin() + at, entries.values.begin() + end},
                          {visible.begin() + at, visible.begin() + end}, queries_, keys_);
      if (!vector) stop("no vector over keys gives '{}'", graph_.name_of(value));
      any = any || std::ranges::any_of(*vector, [](double entry) { return entry != 0; });
      vectors.values.insert(vectors.values.end(), vector->begin(), vector->end());
    }
    if (any) parts_.biases.push_back({.known = std::move(vectors)});
  }

  const GraphFacts& facts_;
  const Cutout& cutout_;
  const Graph& graph_;
  const LocalFactors& factors_;
  const CanonicalFactors& canonical_;
  Sizes sizes_;
  int64_t queries_ = 0;
  int64_t keys_ = 0;
  TermParts parts_;
};

}  // namespace

TermParts take_apart(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
                     const CanonicalFactors& canonical, const Term& term,
                     const TermMeaning& meaning) {
  return Dissector(facts, cutout, factors, canonical).take_apart(term, meaning);
}

}  // namespace autosp::transforms::fusion
