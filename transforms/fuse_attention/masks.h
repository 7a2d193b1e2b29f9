// What a mask or a bias is, without ever forming it over two sequences.
//
// A term is walked back to values with one sequence dimension or none. A mask is then a conjunction
// of literals: comparisons of a key vector with a query vector, which for known vectors give the
// interval of keys that each query sees; vectors over keys or queries; equality of two run-time
// vectors (packed documents). A bias is a sum of vectors and what is left. Constants over two
// sequences are read entry by entry and taken apart alike.
#pragma once

#include <memory>
#include <set>
#include <tuple>

#include "transforms/fuse_attention/black_box.h"
#include "transforms/fuse_attention/probe.h"

namespace autosp::transforms::fusion {

enum class Comparison : uint8_t { kLess, kLessOrEqual, kGreater, kGreaterOrEqual, kEqual };

// Vectors that the layers of a graph share, as their masks are one as a rule.
using SharedIntegers = std::shared_ptr<const std::vector<int64_t>>;
using SharedNumbers = std::shared_ptr<const std::vector<double>>;

// A conjunct. Values are of the cut-out.
struct Literal {
  enum class Kind : uint8_t {
    kInterval,     // query i sees keys begin[i] <= j < end[i], known now
    kBegin,        // keys from value[i] + offset on
    kEnd,          // keys below value[i] + offset, or below end[i] where `end` is known
    kKeys,         // keys where the bool `value` is `positive`
    kQueries,      // queries where the bool `value` is `positive` see keys, others none
    kKnownKeys,    // keys where known[j], known now
    kSameSegment,  // keys whose `key_segment` is the query's `value`
  };
  // In place of a bool `value`: whether `value comparison number`.
  struct Condition {
    Comparison comparison = Comparison::kEqual;
    double number = 0;
  };
  Kind kind = Kind::kInterval;
  SharedIntegers begin;  // [batch or 1, queries]
  SharedIntegers end;
  SharedIntegers known;  // [batch or 1, keys]
  ValueId value;
  ValueId key_segment;
  int64_t offset = 0;
  bool positive = true;
  std::optional<Condition> condition;  // of kKeys and kQueries
};

// What a vector is a rearranged copy of, in the whole graph.
ValueId source_of(const GraphFacts& facts, ValueId value);

// The literals of kind kSameSegment, each once.
std::vector<Literal> distinct_segments(const GraphFacts& facts, const Cutout& cutout,
                                       const std::vector<Literal>& literals);

// Within how many bits, as a signed number, the ids of a segment are.
int segment_bits(const ir::Graph& cutout, const Literal& segment);

// Why no int64 can stand for all of these ids together, or "".
std::string why_segments_stay(const ir::Graph& cutout, const std::vector<Literal>& segments);

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
  bool rounding_shows = false;  // in a row without a key the number hides a part of the scores
  std::string kept_summand;     // a part of the bias that stays over queries and keys: which
  bool implied = false;         // hides only rows that another term hides whole (row_guards.h)
  bool kept = false;            // stays a bias over queries and keys, as it is computed
  bool sees_own = false;        // kept, a mask, and every query sees the key at its own position
  std::string why_kept;
};

// The keys that each query sees, as far as they are known before the run.
struct KnownIntervals {
  SharedIntegers begin;  // [batch or 1, queries]; null: from the first key on
  SharedIntegers end;    // null: to the last key
  bool some_empty = false;
  bool some_miss_own_position = false;  // a query that does not see the key at its own position
  std::string name;
};

bool holds(double a, Comparison comparison, double b);
std::string_view name_of(Comparison comparison);  // the operator's

// What was read once for all layers of a graph.
class MaskMemo {
 public:
  // The elements of a value that is known; `make` reads them. By representative.
  template <typename Make>
  SharedNumbers vector(ValueId representative, const Make& make) {
    const auto [entry, is_new] = vectors_.try_emplace(representative);
    if (is_new) entry->second = make();
    return entry->second;
  }
  SharedNumbers repeated(double number, int64_t length);
  // The vector, or an equal one that was seen before.
  SharedIntegers shared(std::vector<int64_t> vector);
  // See compare_vectors. Null pointers: no intervals.
  std::pair<SharedIntegers, SharedIntegers> compare(const SharedNumbers& key, Comparison comparison,
                                                    const SharedNumbers& query, double shift);
  // Of the literals of kind kInterval.
  std::shared_ptr<const KnownIntervals> intersect(const std::vector<Literal>& literals,
                                                  int64_t queries, int64_t keys);

 private:
  using Bounds = std::pair<SharedIntegers, SharedIntegers>;
  struct ByContent {
    bool operator()(const SharedIntegers& a, const SharedIntegers& b) const { return *a < *b; }
  };

  std::set<SharedIntegers, ByContent> integers_;

  std::map<ValueId, SharedNumbers> vectors_;
  std::map<std::pair<double, int64_t>, SharedNumbers> repeated_;
  std::map<std::tuple<SharedNumbers, Comparison, SharedNumbers, double>, Bounds> compared_;
  std::map<std::pair<std::vector<Bounds>, std::pair<int64_t, int64_t>>,
           std::shared_ptr<const KnownIntervals>>
      intersections_;
};

// Takes a term of kind kMask or kAdd apart. Never refuses: what is not understood is kept.
// What is constant along a row goes, unless there is a sink beside which it counts. With 16 bits
// what differs between rows stays too: slope * j has lost what slope * (j - i) says.
struct RowConstants {
  bool count = false;
  bool are_rounded = false;  // the attention's numbers have 16 bits
};
TermParts take_apart(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
                     const CanonicalFactors& canonical, const Term& term,
                     const TermMeaning& meaning, RowConstants rows, MaskMemo& memo);

// The elements of a value that depends on constants alone; nullopt when it does not, or when there
// are more than 2^24 of them.
std::optional<ir::Tensor> known_tensor(const GraphFacts& facts, ValueId value);

// The two numbers that a value of the whole graph chooses between, where it is such a choice.
std::optional<std::pair<double, double>> two_numbers(const GraphFacts& facts, ValueId value);

// 1 and the next greater number of a type, apart.
double epsilon_of(ir::DataType dtype);

// The lowest finite number of a type.
double lowest_of(ir::DataType dtype);

// Numbers below this, added to a score, leave no weight.
inline constexpr double kMaskingNumber = -9000;

// A number whose neighbours are so far apart leaves nothing of a score that is added to it.
inline constexpr double kSwallowingSpacing = 32;

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

// The keys j with `key[j] comparison query[i] + shift`, as an interval per query. nullopt unless
// `key` never decreases. Linear where `query` never decreases either.
std::optional<RowIntervals> compare_vectors(const std::vector<double>& key, Comparison comparison,
                                            const std::vector<double>& query, double shift = 0);

// "causal", "full", "causal, window 24", "intervals".
std::string name_intervals(const std::vector<int64_t>& begin, const std::vector<int64_t>& end,
                           int64_t queries, int64_t keys);

// A vector v over keys with matrix[i, j] = v[j] + w[i] for every visible entry, if there is one;
// with w = 0 where `rows_count`.
std::optional<std::vector<double>> find_key_vector(const std::vector<double>& matrix,
                                                   const std::vector<bool>& visible, int64_t rows,
                                                   int64_t keys, bool rows_count = false);

}  // namespace autosp::transforms::fusion
