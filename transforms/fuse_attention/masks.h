// What a mask or a bias is, without ever forming it over two sequences.
//
// A term is walked back to values with one sequence dimension or none. A mask is then a conjunction
// of literals: comparisons of a key vector with a query vector, which for known vectors give the
// interval of keys that each query sees; vectors over keys or queries; equality of two run-time
// vectors (packed documents). A bias is a sum of vectors and what is left. Constants over two
// sequences are read entry by entry and taken apart alike.
#pragma once

#include "transforms/fuse_attention/black_box.h"
#include "transforms/fuse_attention/probe.h"

namespace autosp::transforms::fusion {

// A conjunct. Values are of the cut-out.
struct Literal {
  enum class Kind : uint8_t {
    kInterval,     // query i sees keys begin[i] <= j < end[i], known now
    kBegin,        // keys from value[i] + offset on
    kEnd,          // keys below value[i] + offset
    kKeys,         // keys where the bool `value` is `positive`
    kQueries,      // queries where the bool `value` is `positive` see keys, others none
    kKnownKeys,    // keys where known[j], known now
    kSameSegment,  // keys whose `key_segment` is the query's `value`
  };
  Kind kind = Kind::kInterval;
  std::vector<int64_t> begin;  // [batch or 1, queries]
  std::vector<int64_t> end;
  std::vector<int64_t> known;  // [batch or 1, keys]
  ValueId value;
  ValueId key_segment;
  int64_t offset = 0;
  bool positive = true;
};

// A summand of the bias: the product of these values of the cut-out, times a number; or known now.
struct BiasPart {
  std::vector<ValueId> product;
  double factor = 1;
  std::optional<Block> known;
};

struct TermParts {
  std::vector<Literal> literals;
  std::vector<BiasPart> biases;
  std::optional<double> number;  // what an additive mask adds where it masks: the least of them
  bool several_numbers = false;
  std::string kept_summand;  // a part of the bias that stays over queries and keys: which
  bool kept = false;         // stays a bias over queries and keys, as it is computed
  std::string why_kept;
};

// Takes a term of kind kMask or kAdd apart. Never refuses: what is not understood is kept.
TermParts take_apart(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
                     const CanonicalFactors& canonical, const Term& term,
                     const TermMeaning& meaning);

// The elements of a value that depends on constants alone; nullopt when it does not, or when there
// are more than 2^24 of them.
std::optional<ir::Tensor> known_tensor(const GraphFacts& facts, ValueId value);

// Numbers below this, added to a score, leave no weight.
inline constexpr double kMaskingNumber = -9000;

// --- For known entries, row by row (arithmetic only; tested on its own).

// The interval of keys that each row of `visible` ([rows, keys], row-major) sees, and the keys that
// any row sees, if together they say the same as `visible`.
struct RowIntervals {
  std::vector<int64_t> begin;
  std::vector<int64_t> end;
  std::vector<int64_t> keys;  // 0 or 1
};
std::optional<RowIntervals> find_row_intervals(const std::vector<bool>& visible, int64_t rows,
                                               int64_t keys);

enum class Comparison : uint8_t { kLess, kLessOrEqual, kGreater, kGreaterOrEqual, kEqual };

// The keys j with `key[j] comparison query[i]`, as an interval per query. nullopt unless `key`
// never decreases.
std::optional<RowIntervals> compare_vectors(const std::vector<double>& key, Comparison comparison,
                                            const std::vector<double>& query);

// "causal", "full", "causal, window 24", "intervals".
std::string name_intervals(const std::vector<int64_t>& begin, const std::vector<int64_t>& end,
                           int64_t queries, int64_t keys);

// A vector v over keys with matrix[i, j] = v[j] + w[i] for every visible entry, if there is one.
std::optional<std::vector<double>> find_key_vector(const std::vector<double>& matrix,
                                                   const std::vector<bool>& visible, int64_t rows,
                                                   int64_t keys);

}  // namespace autosp::transforms::fusion
