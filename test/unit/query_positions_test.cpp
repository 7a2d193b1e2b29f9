// Which side of attention is the queries: told by what is normalised, operator by operator.
#include "shard/query_positions.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "ir/builder.h"

namespace autosp::shard {
namespace {

using ir::DataType;

// Batch 2, sequence 6, width 4; tokens [2, 6] are data, everything else follows from them.
class QueryPositions : public testing::Test {
 protected:
  QueryPositions() : build(graph) {
    ids = graph.add_input("input_ids", {DataType::kInt64, {2, 6}});
    weight = graph.add_input("w", {DataType::kFloat32, {9, 4}});
    x = build.gather(weight, ids, 0);
    xt = build.transpose(x, {0, 2, 1});
  }

  ValueId scores() { return build.matmul(x, xt); }
  ValueId softmax(ValueId value, int64_t axis) {
    return build.node("Softmax", {value}, graph.type(value), {{"axis", axis}});
  }

  void analyse() {
    graph.add_output("loss", build.reduce_sum(result, {0, 1, 2}, false));
    Roles roles;
    roles.sequence = {{ids, 1}};
    roles.is_parameter.assign(graph.values().size(), false);
    roles.is_parameter[weight.index()] = true;
    analysis = std::make_unique<FactorAnalysis>(graph, roles.is_parameter);
    const HomeClasses home = find_home(*analysis, roles);
    choice = find_query_positions(*analysis, home, find_attention(*analysis, home));
  }

  // The dimension of the value, made by an operator, that runs over query positions; -1 when none.
  int query_dim(ValueId value) const {
    const NodeId node = graph.value(value).producer;
    if (choice[node.index()].empty()) return -1;
    EXPECT_EQ(choice[node.index()].size(), 1U);
    const Factor& factor = analysis->node(node).factors[choice[node.index()][0]];
    return factor.results[0] ? factor.results[0]->dim : -2;  // -2: summed over
  }

  ir::Graph graph;
  ir::Builder build;
  ValueId ids, weight, x, xt, result;
  std::unique_ptr<FactorAnalysis> analysis;
  FactorChoice choice;
};

TEST_F(QueryPositions, AreWhatTheSoftmaxDoesNotNormalise) {
  const ValueId s = scores();
  const ValueId p = softmax(s, -1);
  const ValueId o = build.matmul(p, x);
  // The gradient of V sums over the queries.
  const ValueId dv = build.matmul(build.transpose(p, {0, 2, 1}), x);
  result = build.binary("Add", o, dv);
  analyse();
  EXPECT_EQ(query_dim(s), 1);
  EXPECT_EQ(query_dim(p), 1);
  EXPECT_EQ(query_dim(o), 1);
  EXPECT_EQ(query_dim(dv), -2);
}

TEST_F(QueryPositions, FollowTransposedScores) {
  const ValueId s = scores();
  const ValueId p = softmax(s, 1);  // keys come first
  result = build.matmul(build.transpose(p, {0, 2, 1}), x);
  analyse();
  EXPECT_EQ(query_dim(s), 2);
  EXPECT_EQ(query_dim(p), 2);
  EXPECT_EQ(query_dim(result), 1);
}

TEST_F(QueryPositions, AreNoneWhereBothSidesAreNormalised) {
  const ValueId s = scores();
  const ValueId p = build.binary("Add", softmax(s, 1), softmax(s, 2));
  result = build.matmul(p, x);
  analyse();
  EXPECT_EQ(query_dim(s), -1);
  EXPECT_EQ(query_dim(p), -1);
  EXPECT_EQ(query_dim(result), -1);
}

TEST_F(QueryPositions, WithoutNormalisationAreWhatIsNotSummed) {
  const ValueId s = scores();
  result = build.matmul(s, x);
  analyse();
  EXPECT_EQ(query_dim(s), 1);
  EXPECT_EQ(query_dim(result), 1);
}

// One mask, read by a layer as [queries, keys] and by another as [keys, queries]: the layers stay
// apart, and the mask has no side of its own.
TEST_F(QueryPositions, OfLayersThatShareAMaskStayApart) {
  const ValueId column = build.unsqueeze(ids, {2});
  const ValueId row = build.unsqueeze(ids, {1});
  const ValueId less = build.node("LessOrEqual", {row, column}, {DataType::kBool, {2, 6, 6}}, {});
  const ValueId mask = build.cast(less, DataType::kFloat32);
  const ValueId s = build.binary("Add", scores(), mask);
  const ValueId o = build.matmul(softmax(s, 2), x);
  const ValueId t = build.binary("Add", build.matmul(o, build.transpose(o, {0, 2, 1})), mask);
  result = build.matmul(build.transpose(softmax(t, 1), {0, 2, 1}), x);
  analyse();
  EXPECT_EQ(query_dim(s), 1);
  EXPECT_EQ(query_dim(t), 2);
  EXPECT_EQ(query_dim(mask), -1);
}

TEST_F(QueryPositions, OfAMaskAreThoseOfItsReaders) {
  const ValueId column = build.unsqueeze(ids, {2});
  const ValueId row = build.unsqueeze(ids, {1});
  const ValueId less = build.node("LessOrEqual", {row, column}, {DataType::kBool, {2, 6, 6}}, {});
  const ValueId mask = build.cast(less, DataType::kFloat32);
  const ValueId s = build.binary("Add", scores(), mask);
  result = build.matmul(softmax(s, 2), x);
  analyse();
  EXPECT_EQ(query_dim(mask), 1);
  EXPECT_EQ(query_dim(less), 1);
}

}  // namespace
}  // namespace autosp::shard
