// Every sharding rule against the operator it describes: random cases, run whole and split along
// each factor that the rule allows, and, where the rule says the operator is linear, on operands
// that are partial sums. The planner's strategies, the SPMD program and the reference kernels do
// the work, so a layout, a local bound or a reduction that is wrong shows as a number that is
// wrong.
#include "shard/rule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "shard/plan.h"
#include "support/operator_cases.h"
#include "support/run_graph.h"
#include "transforms/spmd/emulate.h"
#include "transforms/spmd/program.h"

namespace autosp::shard {
namespace {

using ir::Graph;
using test::CaseBuilder;
using test::OperatorCase;
using test::run_graph;
using test::Tensors;

constexpr unsigned kCases = 40;  // per operator

// `parts` consecutive ranges, none empty.
Cuts random_cuts(CaseBuilder& draw, int64_t extent, int64_t parts) {
  Cuts cuts = {0, extent};
  while (static_cast<int64_t>(cuts.size()) <= parts) {
    const int64_t cut = draw.integer(1, extent - 1);
    if (std::ranges::find(cuts, cut) == cuts.end()) cuts.push_back(cut);
  }
  std::ranges::sort(cuts);
  return cuts;
}

// One mesh axis of `ranks` ranks with one home class: every node that has it is split along it.
class ForcedPlan {
 public:
  ForcedPlan(const Graph& graph, int64_t ranks) : ranks_(ranks) {
    plan_.analysis =
        std::make_shared<FactorAnalysis>(graph, std::vector<bool>(graph.values().size(), false));
    plan_.mesh = Mesh({{"u", ranks}});
  }

  const FactorAnalysis& analysis() const { return *plan_.analysis; }
  int64_t size(AtomId atom) const { return analysis().atoms().size(atom); }

  // Whether the factor can be split over the ranks with a share for each. Two factors of one class
  // are the planner's to tell apart.
  bool allows(NodeId node, const Factor& factor) const {
    const auto same = std::ranges::count_if(analysis().node(node).factors, [&](const Factor& f) {
      return analysis().class_of(f.atom) == analysis().class_of(factor.atom);
    });
    return factor.role != Role::kCoupled && same == 1 &&
           std::min(size(factor.atom), size(factor.result_atom)) >= ranks_;
  }

  // The graph of all ranks, split along the factors at random cut points.
  Graph split(const std::vector<Factor>& factors, CaseBuilder& draw) {
    AxisProblem problem;
    problem.ranks = ranks_;
    for (const Factor& factor : factors) {
      problem.home.insert(analysis().class_of(factor.atom));
      for (AtomId atom : {factor.atom, factor.result_atom}) {
        problem.home_cuts[atom] = random_cuts(draw, size(atom), ranks_);
      }
    }
    AxisPlan axis = plan_axis(analysis(), problem);
    for (size_t n = 0; n < axis.labels.size(); ++n) {
      AUTOSP_CHECK(axis.strategies[n][0].has_value(), "{} cannot run at home",
                   plan_.graph().nodes()[n].op);
      axis.labels[n] = Label::kHome;
    }
    plan_.axes = {std::move(axis)};
    plan_.problems = {std::move(problem)};
    return transforms::emulate(transforms::build_program(plan_));
  }

  AxisLayout result_layout(NodeId node) const { return plan_.result_layout(node, 0)[0]; }

 private:
  int64_t ranks_;
  Plan plan_;
};

// How often the operator ran sharded over all its cases.
struct Runs {
  int split = 0;
  int partial = 0;
};

void check_splits(const OperatorCase& whole, int64_t ranks, CaseBuilder& draw, Runs& runs) {
  ForcedPlan plan(whole.graph, ranks);
  ASSERT_EQ(plan.analysis().node(whole.node).opaque, "");
  const Tensors want = run_graph(whole.graph, whole.feeds);
  const auto factors = plan.analysis().node(whole.node).factors;
  for (size_t f = 0; f < factors.size(); ++f) {
    if (!plan.allows(whole.node, factors[f])) continue;
    const Graph sharded = plan.split({factors[f]}, draw);
    SCOPED_TRACE(
        fmt::format("{} ranks, factor {} of extent {}", ranks, f, plan.size(factors[f].atom)));
    test::expect_close_or_nan(run_graph(sharded, whole.feeds), want);
    ++runs.split;
  }
}

// The case with each operand of `set` computed as a sum over `num_terms` terms.
struct PartialCase {
  Graph graph;
  NodeId node;
  std::vector<NodeId> sums;
  Tensors feeds;
};

PartialCase with_partial_operands(const OperatorCase& whole, const std::vector<size_t>& set,
                                  int64_t num_terms, unsigned seed) {
  const ir::Node& node = whole.graph.node(whole.node);
  PartialCase result;
  ir::Builder build(result.graph);
  std::vector<ValueId> map(whole.graph.values().size());
  for (size_t v = 0; v < map.size(); ++v) {
    const ir::Value& value = whole.graph.values()[v];
    if (value.kind == ir::ValueKind::kConstant) {
      map[v] = result.graph.add_named_constant(value.name, value.constant);
    }
    if (value.kind == ir::ValueKind::kInput) {
      map[v] = result.graph.add_input(value.name, value.type);
      result.feeds[value.name] = whole.feeds.at(value.name);
    }
  }
  for (size_t operand : set) {
    ir::Type type = whole.graph.type(node.inputs[operand]);
    type.shape.insert(type.shape.begin(), num_terms);
    const ValueId terms = result.graph.add_input(fmt::format("terms{}", operand), type);
    Graph only;  // for the feed
    only.add_input(result.graph.name_of(terms), type);
    result.feeds.merge(
        test::random_feeds(only, {.seed = seed + static_cast<unsigned>(operand), .num_tokens = 9}));
    const ValueId sum = build.reduce_sum(terms, {0}, false);
    map[node.inputs[operand].index()] = sum;
    result.sums.push_back(result.graph.value(sum).producer);
  }
  for (const ir::Node& old : whole.graph.nodes()) {
    std::vector<ValueId> inputs;
    for (ValueId input : old.inputs) inputs.push_back(input ? map[input.index()] : ValueId());
    std::vector<ir::Type> types;
    for (ValueId output : old.outputs) {
      types.push_back(output ? whole.graph.type(output) : ir::Type{});
    }
    result.node = result.graph.add_node(old.op, inputs, types, old.attributes, old.domain);
    for (size_t k = 0; k < old.outputs.size(); ++k) {
      if (old.outputs[k]) map[old.outputs[k].index()] = result.graph.node(result.node).outputs[k];
    }
  }
  for (const ir::Output& output : whole.graph.outputs()) {
    result.graph.add_output(output.name, map[output.value.index()]);
  }
  return result;
}

void check_partial_sums(const OperatorCase& whole, int64_t ranks, unsigned seed, CaseBuilder& draw,
                        Runs& runs) {
  const auto rule = rule_of(whole.graph, whole.graph.node(whole.node));
  ASSERT_TRUE(rule.has_value());
  for (const std::vector<size_t>& set : rule->linear) {
    SCOPED_TRACE(fmt::format("{} ranks, operand {} partial", ranks, set[0]));
    const PartialCase partial = with_partial_operands(whole, set, ranks + 1, seed);
    ForcedPlan plan(partial.graph, ranks);
    std::vector<Factor> term_factors;
    for (NodeId sum : partial.sums) {
      for (const Factor& factor : plan.analysis().node(sum).factors) {
        if (factor.role == Role::kReduction) term_factors.push_back(factor);
      }
    }
    const Graph sharded = plan.split(term_factors, draw);
    EXPECT_TRUE(plan.result_layout(partial.node).is_partial());
    test::expect_close_or_nan(run_graph(sharded, partial.feeds),
                              run_graph(partial.graph, partial.feeds));
    ++runs.partial;
  }
}

bool is_drawn(const std::string& op) { return op.starts_with("Random"); }

class OperatorRule : public testing::TestWithParam<std::string> {};

TEST_P(OperatorRule, SplitAndPartialRunsEqualTheWhole) {
  const std::string& op = GetParam();
  Runs runs;
  for (unsigned seed = 0; seed < kCases && !HasFailure(); ++seed) {
    const OperatorCase whole = test::draw_operator_case(op, seed);
    const ir::Node& node = whole.graph.node(whole.node);
    std::string operands;
    for (ValueId input : node.inputs) {
      operands += input ? to_string(whole.graph.type(input)) + " " : "- ";
    }
    SCOPED_TRACE(fmt::format("case {}: {} of {}", seed, op, operands));
    const auto rule = rule_of(whole.graph, node);
    ASSERT_TRUE(rule.has_value()) << "in normal form, every operator of the table has a rule";
    SCOPED_TRACE(rule->to_string());
    CaseBuilder draw(seed);
    for (const int64_t ranks : {2, 3}) {
      check_splits(whole, ranks, draw, runs);
      check_partial_sums(whole, ranks, seed, draw, runs);
    }
  }
  // A rule that never splits would have passed unseen. Random numbers are drawn whole.
  EXPECT_EQ(runs.split > 0, !is_drawn(op));
}

INSTANTIATE_TEST_SUITE_P(All, OperatorRule, testing::ValuesIn(operators_with_rules()),
                         [](const auto& row) {
                           std::string name = row.param;
                           std::erase(name, ':');
                           return name;
                         });

TEST(OperatorRules, EveryRuleHasCasesAndEveryCaseARule) {
  EXPECT_EQ(test::operators_with_cases(), operators_with_rules());
}

}  // namespace
}  // namespace autosp::shard
