// Takes one term of a softmax apart (see masks.h). One class over three files: what a mask asks for
// (mask_conjunctions.cpp), what a bias is the sum of (mask_sums.cpp), and constants over two
// sequences (known_entries.cpp).
#pragma once

#include "transforms/fuse_attention/masks.h"

namespace autosp::transforms::fusion {

// What stops the taking apart of a term; caught in Dissector::take_apart.
struct NotUnderstood {
  std::string why;
};

inline constexpr int64_t kMostKnownElements = int64_t{1} << 24;

class Dissector {
 public:
  Dissector(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
            const CanonicalFactors& canonical, RowConstants rows, MaskMemo& memo)
      : memo_(memo),
        rows_(rows),
        facts_(facts),
        cutout_(cutout),
        graph_(cutout.graph),
        factors_(factors),
        canonical_(canonical),
        sizes_(factors, canonical) {
    queries_ = sizes_.product(canonical.queries);
    keys_ = sizes_.product(canonical.keys);
  }

  TermParts take_apart(const Term& term, const TermMeaning& meaning);

 private:
  template <typename... Args>
  [[noreturn]] void stop(fmt::format_string<Args...> format, Args&&... args) const {
    throw NotUnderstood{fmt::format(format, std::forward<Args>(args)...)};
  }

  std::optional<double> uniform(ValueId value) const;

  // Which indices a value has.
  struct Extent {
    bool batch = false;
    bool heads = false;
    bool queries = false;
    bool keys = false;
  };
  Extent extent_of(ValueId value) const;

  // --- Masks: what has to hold for `value` to be `wanted`.

  void conjunction(ValueId value, bool wanted);
  void open(ValueId value, bool wanted);
  void nonzero(ValueId numbers, bool wanted);

  // Either of two: of intervals that begin with the first key, the one that ends later.
  void either(const ir::Node& node, bool wanted);
  std::optional<Literal> only_literal(ValueId value, bool wanted);

  // Where(c, a, false) is c and a; Where(c, true, b) is c or b.
  void choice(const ir::Node& node, bool wanted);
  Literal nothing() const;
  void leaf(ValueId value, const Extent& extent, bool wanted);
  static std::optional<Comparison> comparison_of(const ir::Node& node);
  static Comparison swapped(Comparison comparison);
  static Comparison negated(Comparison comparison);

  // Through what repeats, rearranges or converts without changing numbers: not floats to integers,
  // which are cut, nor to floats of fewer bits. Integers are taken to fit where they are put.
  ValueId stripped(ValueId value) const;
  bool keeps_numbers(const ir::Node& cast) const;
  void compare(const ir::Node& node, Comparison comparison, bool wanted);
  void distance(ValueId difference, Comparison comparison, double number, const std::string& name);
  // left comparison right + shift
  struct Compared {
    ValueId left;
    Comparison comparison;
    ValueId right;
    double shift = 0;
  };
  void literal(Compared compared, bool wanted, const std::string& name);
  void condition(Literal::Kind kind, ValueId value, Comparison comparison, double number,
                 bool wanted);
  static bool counts_up(const std::vector<double>& vector);

  // j comparison value[i] + offset
  void bound(ValueId value, Comparison comparison, int64_t offset, const std::string& name);

  // The known elements of a value along one index, equal along all others; null if there are none.
  SharedNumbers vector_over(ValueId value, const AtomList& index) const;
  SharedNumbers read_vector(ValueId value, const AtomList& index) const;
  Block block_of(const ir::Tensor& tensor, ValueId value) const;

  // --- Masks that are no vectors (own_position.cpp).

  // Whether `value` is `wanted` wherever query and key stand at one position.
  bool sees_own(ValueId value, bool wanted) const;
  bool compares_own(const ir::Node& node, Comparison comparison, bool wanted) const;

  // What a value is there, position by position; nullopt where that is not known. Of an `a - b` it
  // may be known even where `a` and `b` are not.
  std::optional<std::vector<double>> at_own_position(ValueId value) const;
  std::optional<std::vector<double>> difference_at_own(ValueId a, ValueId b) const;

  // --- Biases: the summands of `value`.

  void mask_by(double number);
  void sum(ValueId value, double factor = 1);
  void summands(const ir::Node& node, double factor);
  double rounded(double number, ValueId value) const;
  ValueId before_repeats(ValueId value) const;
  bool hides(ValueId value);
  void masked_sum(const ir::Node& node, double factor);

  // A bool made a number, or 1 less that, times a masking number.
  bool masking_bits(ValueId value, double number);

  // Products of vectors, summed: slope * (j - i) is slope * j, less what is constant along keys.
  bool linear(ValueId value, std::vector<ValueId> product, double factor);
  bool linear_end(std::vector<ValueId> product, double factor);
  void constant_along_rows(bool zero, ValueId value) const;

  // --- Known entries over queries and keys.

  void read_entries(ValueId value, bool is_mask, bool wanted);
  void read_mask(ValueId value, const std::vector<bool>& visible, size_t copies);
  void read_bias(ValueId value, const Block& entries, const std::vector<bool>& visible,
                 size_t copies);

  MaskMemo& memo_;
  const RowConstants rows_;
  const GraphFacts& facts_;
  const Cutout& cutout_;
  const ir::Graph& graph_;
  const LocalFactors& factors_;
  const CanonicalFactors& canonical_;
  Sizes sizes_;
  int64_t queries_ = 0;
  int64_t keys_ = 0;
  TermParts parts_;
};

}  // namespace autosp::transforms::fusion
