// Random one-operator graphs, for every operator that has a sharding rule.
//
// Each operator has one maker, which draws shapes (extents of 1 and broadcasting included),
// attributes and operands; the data it needs to be valid (indices in range, divisors other than 0)
// is among the feeds.
#pragma once

#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "ir/builder.h"
#include "support/run_graph.h"

namespace autosp::test {

struct OperatorCase {
  ir::Graph graph;
  NodeId node;    // the operator under test; others only prepare its operands
  Tensors feeds;  // for every graph input
};

// Deterministic: the same operator and seed give the same case. Throws InternalError for an
// operator without a maker.
OperatorCase draw_operator_case(const std::string& op, unsigned seed);

// The operators with a maker, sorted.
std::vector<std::string> operators_with_cases();

// --- For the makers.
class CaseBuilder {
 public:
  explicit CaseBuilder(unsigned seed) : generator_(seed) {}

  ir::Builder& build() { return build_; }
  OperatorCase finish() && { return std::move(case_); }

  // Uniform in [low, high].
  int64_t integer(int64_t low, int64_t high);
  bool coin() { return integer(0, 1) == 1; }
  template <typename T>
  T one_of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(integer(0, static_cast<int64_t>(choices.size()) - 1))];
  }

  // Extents are mostly 2 to 9, sometimes 1.
  int64_t extent();
  ir::Shape shape(int64_t least_rank, int64_t greatest_rank);
  // A shape that broadcasts to `result` (the same one in one draw of three).
  ir::Shape broadcastable_to(const ir::Shape& result);
  size_t axis_of(const ir::Shape& shape);
  // The axis as a model might write it: from the front or the back.
  int64_t written(size_t axis, size_t rank);

  // Graph inputs with random feeds. Integers are in [low, high).
  ValueId floats(const ir::Shape& shape, ir::DataType dtype = ir::DataType::kFloat32);
  ValueId bools(const ir::Shape& shape);
  ValueId integers(const ir::Shape& shape, int64_t low, int64_t high,
                   ir::DataType dtype = ir::DataType::kInt64);
  ValueId fed(ir::Tensor tensor);

  // Adds the operator under test (types by ONNX's inference); its results become graph outputs. Of
  // another domain than the default it is called "domain::op".
  void test(const std::string& op, std::vector<ValueId> inputs,
            const ir::Attributes& attributes = {}, size_t num_results = 1);
  // The same with results that may be absent.
  void test(const std::string& op, std::vector<ValueId> inputs, const ir::Attributes& attributes,
            const std::vector<bool>& results);

 private:
  OperatorCase case_;
  ir::Builder build_{case_.graph};
  std::mt19937 generator_;
};

using CaseMaker = std::function<void(CaseBuilder&)>;
using CaseMakers = std::map<std::string, CaseMaker>;

// One table per family of operators.
CaseMakers elementwise_cases();
CaseMakers reduction_cases();  // contractions, softmax, norms, reductions, scans, sorts
CaseMakers movement_cases();   // views, transposes, windows, joins, fills
CaseMakers indexing_cases();
CaseMakers attention_cases();

}  // namespace autosp::test
