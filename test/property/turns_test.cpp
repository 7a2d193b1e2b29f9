// Random programs that run by turns, and random values that they keep: whatever is written over
// what, results are those of graphs that are run apart and given every input.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "executor/run.h"
#include "executor/session.h"
#include "executor/world.h"
#include "ir/builder.h"
#include "ir/operator_traits.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

const std::vector<std::string> kNames = {"a", "b", "c", "d"};
const ir::Type kMatrix = {ir::DataType::kFloat32, {4, 4}};

int any_below(size_t bound) { return *rc::gen::inRange(0, static_cast<int>(bound)); }
bool heads() { return *rc::gen::arbitrary<bool>(); }

// Adds a random operator over some of the values.
void add_operator(ir::Builder& build, std::vector<ValueId>& values) {
  const auto any = [&] { return values[static_cast<size_t>(any_below(values.size()))]; };
  switch (any_below(7)) {
    case 0:
      return values.push_back(build.binary("Add", any(), any()));
    case 1:
      return values.push_back(build.binary("Mul", any(), any()));
    case 2:
      return values.push_back(build.unary("Tanh", any()));
    case 3:
      return values.push_back(build.unary("Tanh", build.matmul(any(), any())));
    case 4:
      return values.push_back(build.transpose(any(), {1, 0}));
    case 5:
      return values.push_back(build.reshape(build.reshape(any(), {16}), {4, 4}));
    default: {
      ir::Graph& graph = build.graph();
      std::vector<ValueId> operands = {*graph.find("rate"), *graph.find("count")};
      const int tensors = 1 + any_below(2);
      for (int k = 0; k < 3 * tensors; ++k) operands.push_back(any());
      const NodeId node = graph.add_node(
          "Momentum", operands, std::vector<ir::Type>(static_cast<size_t>(2 * tensors), kMatrix),
          {{"alpha", 0.5F}, {"beta", 0.5F}, {"norm_coefficient", 0.25F}},
          std::string(ir::kTrainingDomain));
      for (const ValueId result : graph.node(node).outputs) values.push_back(result);
    }
  }
}

// Inputs named in `kept` and those that are fed, operators over all of them, and outputs, of which
// some are kept.
Turn any_turn(const std::set<std::string>& kept) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  graph->add_input("rate", {ir::DataType::kFloat32, {}});
  graph->add_input("count", {ir::DataType::kInt64, {}});
  std::vector<ValueId> values = {graph->add_input("x", kMatrix)};
  for (const std::string& name : kept) values.push_back(graph->add_input(name, kMatrix));
  for (int k = any_below(12); k >= 0; --k) add_operator(build, values);
  Turn turn{nullptr, kept, {}};
  for (const std::string& name : kNames) {
    if (heads()) continue;
    graph->add_output(name + ".new", values[static_cast<size_t>(any_below(values.size()))]);
    if (heads()) turn.keeps[name + ".new"] = name;
  }
  graph->add_output("last", values.back());
  turn.graph = graph;
  return turn;
}

// Three, of which some has every name as a kept input.
std::vector<Turn> any_turns() {
  std::vector<Turn> turns;
  std::set<std::string> missing(kNames.begin(), kNames.end());
  for (int k = 0; k < 3; ++k) {
    std::set<std::string> kept;
    for (const std::string& name : kNames) {
      if (heads() || (k == 2 && missing.contains(name))) kept.insert(name);
    }
    for (const std::string& name : kept) missing.erase(name);
    turns.push_back(any_turn(kept));
  }
  return turns;
}

bool identical(const Arrays& got, const Arrays& want) {
  const auto same = [](const auto& a, const auto& b) {
    return a.first == b.first && a.second.identical(b.second);
  };
  return std::ranges::equal(got, want, same);
}

// The same programs without anything kept, each with an arena of its own.
class Apart {
 public:
  explicit Apart(const std::vector<Turn>& turns) : turns_(turns) {}

  // Outputs that are not kept; `values` are what is kept before and afterwards.
  Arrays run(size_t turn, Arrays feeds, Arrays& values) const {
    feeds.insert(values.begin(), values.end());
    RunOptions options;
    options.threads_per_rank = 1;
    Arrays outputs =
        std::move(run_in_threads({turns_[turn].graph}, {feeds}, options).ranks[0].outputs);
    for (const auto& [output, name] : turns_[turn].keeps) {
      values[name] = outputs.extract(output).mapped();
    }
    return outputs;
  }

 private:
  const std::vector<Turn>& turns_;
};

// Whether what is kept after the program's run is what it should be, or gone where it may be.
bool keeps(Session& session, const Program& program, const Arrays& values) {
  return std::ranges::all_of(kNames, [&](const std::string& name) {
    if (session.kept_bytes(name) == 0) return program.gone_after().contains(name);
    return session.kept(name).identical(values.at(name));
  });
}

RC_GTEST_PROP(Turns, GiveWhatTheirGraphsGiveApart, ()) {
  const std::vector<Turn> turns = any_turns();
  const std::vector<Program> programs = compile_turns(turns);
  const Apart apart(turns);
  std::vector<std::string> faults;
  run_world(1, 60, [&](int, Communicator& communicator) {
    const auto session = make_session(programs, communicator, {});
    ir::Graph inputs;
    for (const std::string& name : kNames) inputs.add_input(name, kMatrix);
    Arrays values = test::random_feeds(inputs);
    for (const auto& [name, tensor] : values) session->keep(name, tensor);
    for (const size_t turn : {0, 1, 0, 1, 2, 0, 1, 2}) {
      Arrays feeds = test::random_feeds(*turns[turn].graph, {.seed = static_cast<unsigned>(turn)});
      for (const std::string& name : turns[turn].kept) feeds.erase(name);
      const Arrays want = apart.run(turn, feeds, values);
      if (!identical(session->run(programs[turn], feeds).outputs, want)) {
        faults.push_back(fmt::format("outputs of turn {}", turn));
      }
      if (!keeps(*session, programs[turn], values)) {
        faults.push_back(fmt::format("what turn {} keeps", turn));
      }
    }
  });
  RC_ASSERT(faults == std::vector<std::string>());
}

}  // namespace
}  // namespace autosp::executor
