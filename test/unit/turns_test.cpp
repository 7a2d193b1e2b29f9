// Where programs that run by turns have what they keep. That results stay right is a property
// (property/turns_test.cpp) and a matter of sessions (session_test.cpp).
#include <gtest/gtest.h>

#include "executor/program.h"
#include "ir/builder.h"
#include "ir/operator_traits.h"

namespace autosp::executor {
namespace {

constexpr int64_t kBytes = int64_t{64} * 64 * 4;
const ir::Type kMatrix = {ir::DataType::kFloat32, {64, 64}};
const ir::Type kNumber = {ir::DataType::kFloat32, {}};

int64_t offset_of(const Program& program, const std::string& input) {
  const Place& place = program.place(*program.graph().find(input));
  EXPECT_EQ(place.storage, Storage::kArena) << input;
  return program.buffers()[static_cast<size_t>(place.buffer)].offset;
}

int64_t offset_of_output(const Program& program, const std::string& name) {
  for (const ir::Output& output : program.graph().outputs()) {
    if (output.name != name) continue;
    const Place& place = program.place(output.value);
    EXPECT_EQ(place.storage, Storage::kArena) << name;
    return program.buffers()[static_cast<size_t>(place.buffer)].offset;
  }
  ADD_FAILURE() << "no output " << name;
  return -1;
}

// w.grad = x @ tanh(w).
Turn step() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", kMatrix);
  const ValueId w = graph->add_input("w", kMatrix);
  graph->add_output("w.grad", build.matmul(x, build.unary("Tanh", w)));
  return {graph, {"w"}, {{"w.grad", "w.grad"}}};
}

// w.new = w - rate * w.grad.
Turn descent() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId w = graph->add_input("w", kMatrix);
  const ValueId gradient = graph->add_input("w.grad", kMatrix);
  const ValueId rate = graph->add_input("rate", kNumber);
  graph->add_output("w.new", build.binary("Sub", w, build.binary("Mul", rate, gradient)));
  return {graph, {"w", "w.grad"}, {{"w.new", "w"}}};
}

// Adam's, of a parameter that has decayed.
Turn adam() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  std::vector<ValueId> inputs = {graph->add_input("rate", kNumber),
                                 graph->add_input("count", {ir::DataType::kInt64, {}})};
  for (const char* name : {"w", "w.grad", "mean", "square"}) {
    inputs.push_back(graph->add_input(name, kMatrix));
  }
  inputs[2] = build.binary("Mul", inputs[2], build.scalar(ir::DataType::kFloat32, 0.9));
  const NodeId node = graph->add_node("Adam", inputs, {kMatrix, kMatrix, kMatrix}, {},
                                      std::string(ir::kTrainingDomain));
  for (size_t k = 0; const char* name : {"w.new", "mean.new", "square.new"}) {
    graph->add_output(name, graph->node(node).outputs[k++]);
  }
  return {graph,
          {"w", "w.grad", "mean", "square"},
          {{"w.new", "w"}, {"mean.new", "mean"}, {"square.new", "square"}}};
}

// Two matrices to work in, and the parameter: the gradient is one of the two.
TEST(Turns, LeaveAGradientWhereTheNextReadsIt) {
  const std::vector<Program> programs = compile_turns({step(), descent()});
  EXPECT_EQ(offset_of_output(programs[0], "w.grad"), offset_of(programs[1], "w.grad"));
  for (const Program& program : programs) EXPECT_EQ(program.memory().arena, 3 * kBytes);
  EXPECT_EQ(programs[1].gone_after(), std::set<std::string>{"w.grad"});
  EXPECT_TRUE(programs[0].gone_after().empty());
  EXPECT_EQ(programs[0].memory().inputs, kBytes) << "w is no longer outside";
}

TEST(Turns, WriteOverParametersAndStates) {
  const std::vector<Program> descending = compile_turns({step(), descent()});
  EXPECT_EQ(offset_of_output(descending[1], "w.new"), offset_of(descending[0], "w"));
  const std::vector<Program> programs = compile_turns({step(), adam()});
  for (const std::string name : {"w", "mean", "square"}) {
    EXPECT_EQ(offset_of_output(programs[1], name + ".new"), offset_of(programs[1], name)) << name;
  }
  EXPECT_EQ(programs[0].memory().arena, 5 * kBytes);
}

// The old value is read by the very operator that would write over it in another order, or
// afterwards, or is an output itself.
TEST(Turns, DoNotWriteOverWhatIsStillRead) {
  using Emit = ValueId (*)(ir::Builder&, ValueId w);
  const Emit cases[] = {[](ir::Builder& build, ValueId w) {
                          return build.transpose(w, {1, 0});
                        },
                        [](ir::Builder& build, ValueId w) { return build.matmul(w, w); },
                        [](ir::Builder& build, ValueId w) {
                          const ValueId next = build.unary("Tanh", w);
                          build.graph().add_output("sum", build.reduce_sum(w, {0, 1}, false));
                          return next;
                        },
                        [](ir::Builder& build, ValueId w) {
                          build.graph().add_output("before", build.reshape(w, {int64_t{64} * 64}));
                          return build.unary("Tanh", w);
                        }};
  for (const Emit& emit : cases) {
    auto graph = std::make_shared<ir::Graph>();
    ir::Builder build(*graph);
    graph->add_output("w.new", emit(build, graph->add_input("w", kMatrix)));
    const Program program = std::move(compile_turns({{graph, {"w"}, {{"w.new", "w"}}}}).front());
    EXPECT_NE(offset_of_output(program, "w.new"), offset_of(program, "w"))
        << build.graph().nodes().back().op;
  }
}

// A turn between the one that writes it and the last one that reads it works beside it, whether it
// reads it, too, or not.
TEST(Turns, LeaveAloneWhatALaterOneReads) {
  for (const std::string read : {"x", "w.grad"}) {
    auto between = std::make_shared<ir::Graph>();
    ir::Builder build(*between);
    const ValueId y = build.unary("Exp", between->add_input(read, kMatrix));
    between->add_output("y", build.matmul(y, y));
    std::set<std::string> kept = {read};
    kept.erase("x");
    const std::vector<Program> programs = compile_turns({step(), {between, kept, {}}, descent()});
    const int64_t passed = offset_of(programs[2], "w.grad");
    EXPECT_EQ(offset_of_output(programs[0], "w.grad"), passed);
    EXPECT_TRUE(programs[1].gone_after().empty());
    for (const ir::Node& node : programs[1].graph().nodes()) {
      const auto& buffer =
          programs[1].buffers()[static_cast<size_t>(programs[1].place(node.outputs[0]).buffer)];
      EXPECT_TRUE(buffer.offset >= passed + kBytes || buffer.offset + buffer.size <= passed)
          << node.op << " where " << read << " is read";
    }
  }
}

// Its kernel says what is wrong, when it runs.
TEST(Turns, CompileOptimizersWithTooFewOperands) {
  auto graph = std::make_shared<ir::Graph>();
  std::vector<ValueId> inputs = {graph->add_input("rate", kNumber),
                                 graph->add_input("count", {ir::DataType::kInt64, {}}),
                                 graph->add_input("w", kMatrix)};
  const NodeId node = graph->add_node("Momentum", inputs, std::vector<ir::Type>(6, kMatrix), {},
                                      std::string(ir::kTrainingDomain));
  graph->add_output("w.new", graph->node(node).outputs[5]);
  EXPECT_NO_THROW(compile_turns({{graph, {"w"}, {{"w.new", "w"}}}}));
}

// Gradients of parameters that are alike may be one value.
TEST(Turns, KeepOneValueUnderTwoNames) {
  Turn both = step();
  auto graph = std::make_shared<ir::Graph>(*both.graph);
  graph->add_output("v.grad", graph->outputs().front().value);
  both.graph = graph;
  both.keeps["v.grad"] = "v.grad";
  Turn other = descent();
  auto reads = std::make_shared<ir::Graph>(*other.graph);
  reads->add_input("v.grad", kMatrix);
  other.graph = reads;
  other.kept.insert("v.grad");
  const std::vector<Program> programs = compile_turns({both, other});
  EXPECT_NE(offset_of(programs[1], "v.grad"), offset_of(programs[1], "w.grad"));
}

TEST(Turns, HaveOneTypeOfAKeptValue) {
  Turn step_of_halves = step();
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  graph->add_output("w.grad", build.cast(graph->add_input("w", kMatrix), ir::DataType::kFloat16));
  step_of_halves.graph = graph;
  EXPECT_THROW(compile_turns({step_of_halves, descent()}), InternalError);
  EXPECT_THROW(compile_turns({step()}), InternalError) << "nobody reads the gradient";
}

}  // namespace
}  // namespace autosp::executor
