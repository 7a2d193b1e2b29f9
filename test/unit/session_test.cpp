#include "executor/session.h"

#include <gtest/gtest.h>

#include <functional>
#include <optional>

#include "executor/rank_device.h"
#include "executor/run.h"
#include "executor/world.h"
#include "ir/builder.h"
#include "ir/operator_traits.h"
#include "support/emulated_device.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::Tensor;

ir::Type floats(ir::Shape shape) { return {ir::DataType::kFloat32, std::move(shape)}; }

// loss = sum(x @ w), and its gradient by w.
std::shared_ptr<ir::Graph> step_graph() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({5, 7}));
  const ValueId w = graph->add_input("w", floats({7, 3}));
  const ValueId y = build.matmul(x, w);
  graph->add_output("loss", build.reduce_sum(y, {0, 1}, false));
  graph->add_output("w.grad", build.matmul(build.transpose(x, {1, 0}), build.unary("Tanh", y)));
  return graph;
}

// w.new = w - x * gradient, and the parameter before it. Its x is another one than the step's.
std::shared_ptr<ir::Graph> update_graph() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId w = graph->add_input("w", floats({7, 3}));
  const ValueId gradient = graph->add_input("w.grad", floats({7, 3}));
  const ValueId rate = graph->add_input("x", floats({}));
  graph->add_output("w.new", build.binary("Sub", w, build.binary("Mul", rate, gradient)));
  graph->add_output("before.new", build.identity(w));
  return graph;
}

// The step, and the update, which keeps the new parameter and what else is told.
std::vector<Turn> turns(const KeptOutputs& more = {}) {
  Turn step{step_graph(), {"w"}, {{"w.grad", "w.grad"}}};
  Turn update{update_graph(), {"w", "w.grad"}, {{"w.new", "w"}}};
  update.keeps.insert(more.begin(), more.end());
  return {step, update};
}

class Sessions : public testing::TestWithParam<bool> {
 protected:
  // Calls `use` with a session of the step and the update.
  template <typename Use>
  void with_session(const Use& use) {
    with_session(turns(), use);
  }
  template <typename Use>
  void with_session(const std::vector<Turn>& turns, const Use& use) {
    const KernelTable device_table = device_kernels(backend_);
    const CompileOptions options{.kernels = GetParam() ? &device_table : nullptr};
    const std::vector<Program> programs = compile_turns(turns, options);
    run_world(1, 60, [&](int, Communicator& communicator) {
      std::optional<RankDevice> device;
      if (GetParam()) device.emplace(backend_, communicator);
      const auto session =
          make_session(programs, communicator, {.device = device ? &*device : nullptr});
      use(*session, programs.front(), programs.back());
    });
  }

  test::EmulatedBackend backend_;
};

TEST_P(Sessions, KeepWhatProgramsLeaveForEachOther) {
  Arrays expected = test::random_feeds(*step_graph());
  const Tensor x = expected.at("x");
  with_session([&](Session& session, const Program& step, const Program& update) {
    session.keep("w", expected.at("w"));
    for (int k = 1; k <= 3; ++k) {
      SCOPED_TRACE(fmt::format("step {}", k));
      expected["x"] = x;
      const Arrays gradients = test::run_graph(*step_graph(), expected);
      expected["x"] = Tensor::scalar(ir::DataType::kFloat32, 0.1 * k);
      expected["w.grad"] = gradients.at("w.grad");
      const Tensor before = session.kept("w");
      const RankResult result = session.run(step, {{"x", x}});
      test::expect_close(result.outputs, {{"loss", gradients.at("loss")}});
      session.run(update, {{"x", expected.at("x")}});
      test::expect_close({{"w", before}}, {{"w", expected.at("w")}});
      expected["w"] = test::run_graph(*update_graph(), expected).at("w.new");
      test::expect_close({{"w", session.kept("w")}}, {{"w", expected.at("w")}});
    }
  });
}

// A device whose memory does not do says so each time it is asked for something.
TEST(DeviceSessions, WithoutRoomKeepNothing) {
  test::EmulatedBackend backend({.memory = 4});
  const KernelTable table = device_kernels(backend);
  const std::vector<Program> programs = compile_turns(turns(), {.kernels = &table});
  run_world(1, 60, [&](int, Communicator& communicator) {
    RankDevice device(backend, communicator);
    const auto session = make_session(programs, communicator, {.device = &device});
    const Tensor w = test::random_feeds(*step_graph()).at("w");
    for (int k = 0; k < 2; ++k) {
      EXPECT_THROW(session->keep("w", w), Error);
      EXPECT_THROW(session->kept("w"), Error);
    }
  });
}

// An output that is an input itself is what that was before the run, whatever else is kept.
TEST_P(Sessions, KeepInputsThatAreOutputs) {
  const Arrays feeds = test::random_feeds(*update_graph());
  with_session(turns({{"before.new", "w.grad"}}),
               [&](Session& session, const Program&, const Program& update) {
                 for (const char* name : {"w", "w.grad"}) session.keep(name, feeds.at(name));
                 session.run(update, feeds);
                 test::expect_close({{"w.grad", session.kept("w.grad")}, {"w", session.kept("w")}},
                                    {{"w.grad", feeds.at("w")},
                                     {"w", test::run_graph(*update_graph(), feeds).at("w.new")}});
               });
}

// What is fed is of one run of one program; what is kept is not replaced by it.
TEST_P(Sessions, KeepWhatIsKeptAndForgetWhatIsFed) {
  const Arrays feeds = test::random_feeds(*step_graph());
  const Tensor loss = test::run_graph(*step_graph(), feeds).at("loss");
  with_session([&](Session& session, const Program& step, const Program&) {
    session.keep("w", feeds.at("w"));
    const Arrays other = {{"x", feeds.at("x")}, {"w", Tensor(floats({7, 3}))}};
    test::expect_close({{"loss", session.run(step, other).outputs.at("loss")}}, {{"loss", loss}});
    test::expect_close({{"w", session.kept("w")}}, {{"w", feeds.at("w")}});
    try {
      session.run(step, {{"y", feeds.at("x")}});
      FAIL() << "x is not fed";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("input \"x\""), std::string::npos) << error.what();
    }
  });
}

// Gradients are there from the step to the update, which may write over them.
TEST_P(Sessions, HaveNothingThatIsNotThereYetOrNoLonger) {
  const Arrays feeds = test::random_feeds(*step_graph());
  const Arrays rate = {{"x", Tensor::scalar(ir::DataType::kFloat32, 0.5)}};
  with_session([&](Session& session, const Program& step, const Program& update) {
    EXPECT_EQ(session.kept_bytes("w"), 0);
    EXPECT_THROW(session.run(step, feeds), InternalError);
    session.keep("w", feeds.at("w"));
    EXPECT_EQ(session.kept_bytes("w"), 7 * 3 * 4);
    EXPECT_THROW(session.run(update, rate), InternalError);
    session.run(step, feeds);
    EXPECT_EQ(session.kept_bytes("w.grad"), 7 * 3 * 4);
    session.run(update, rate);
    EXPECT_EQ(session.kept_bytes("w.grad"), 0);
    EXPECT_THROW(session.kept("w.grad"), InternalError);
    EXPECT_THROW(session.run(update, rate), InternalError);
  });
}

TEST_P(Sessions, HaveNothingThatAFailedRunWasToWrite) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId w = graph->add_input("w", floats({7, 3}));
  const ValueId row = graph->add_input("row", {ir::DataType::kInt64, {1}});
  graph->add_output("w.new", build.binary("Add", w, build.gather(w, row, 0)));
  const auto row_of = [](int64_t index) {
    return Arrays{{"row", Tensor::from_values<int64_t>({1}, std::vector<int64_t>{index})}};
  };
  with_session({{graph, {"w"}, {{"w.new", "w"}}}},
               [&](Session& session, const Program& program, const Program&) {
                 session.keep("w", test::random_feeds(*graph).at("w"));
                 session.run(program, row_of(6));
                 EXPECT_GT(session.kept_bytes("w"), 0);
                 EXPECT_THROW(session.run(program, row_of(7)), Error);
                 EXPECT_THROW(session.kept("w"), InternalError);
               });
}

TEST_P(Sessions, KeepZeros) {
  const Arrays feeds = test::random_feeds(*update_graph());
  with_session([&](Session& session, const Program&, const Program& update) {
    session.keep("w", feeds.at("w"));
    session.keep("w.grad", feeds.at("w.grad"));
    session.keep_zeros("w.grad");
    session.run(update, feeds);
    test::expect_close({{"w", session.kept("w")}}, {{"w", feeds.at("w")}});
  });
}

INSTANTIATE_TEST_SUITE_P(Places, Sessions, testing::Bool(), [](const auto& parameters) {
  return parameters.param ? "Device" : "Host";
});

class DeviceSessions : public Sessions {};

TEST_P(DeviceSessions, BringWhatIsFedToTheDeviceAndNothingElse) {
  const Arrays feeds = test::random_feeds(*step_graph());
  with_session([&](Session& session, const Program& step, const Program& update) {
    session.keep("w", feeds.at("w"));
    session.run(step, {{"x", feeds.at("x")}});
    session.run(update, {{"x", Tensor::scalar(ir::DataType::kFloat32, 0.5)}});
    const int64_t uploads = backend_.counts().uploads;
    session.run(step, {{"x", feeds.at("x")}});  // what is there is not brought again
    EXPECT_EQ(backend_.counts().uploads, uploads);
    session.run(update, {{"x", Tensor::scalar(ir::DataType::kFloat32, 0.5)}});
    EXPECT_EQ(backend_.counts().uploads, uploads + 1);
    session.keep_zeros("w.grad");
    EXPECT_EQ(backend_.counts().uploads, uploads + 1);
    EXPECT_EQ(backend_.counts().allocations, 1);
  });
  EXPECT_EQ(backend_.counts().live_bytes, 0);
}

// The second run of a program is captured, once all programs have run, and replayed from then on.
TEST_P(DeviceSessions, KeepEveryProgramUntilTheyEnd) {
  const Arrays feeds = test::random_feeds(*step_graph());
  with_session([&](Session& session, const Program& step, const Program& update) {
    session.keep("w", feeds.at("w"));
    const Tensor rate = Tensor::scalar(ir::DataType::kFloat32, 0.5);
    session.run(step, {{"x", feeds.at("x")}});
    session.run(step, {{"x", feeds.at("x")}});
    EXPECT_EQ(backend_.counts().kept, 0) << "the update has not run yet";
    session.run(update, {{"x", rate}});
    for (int k = 1; k <= 3; ++k) {
      session.run(step, {{"x", feeds.at("x")}});
      session.run(update, {{"x", rate}});
      EXPECT_EQ(backend_.counts().kept, 2);
      EXPECT_EQ(backend_.counts().replays, 2 * k);
    }
  });
  EXPECT_EQ(backend_.counts().kept, 0);
}

INSTANTIATE_TEST_SUITE_P(Places, DeviceSessions, testing::Values(true),
                         [](const auto&) { return "Device"; });

// --- Steps that are replayed see what is fed anew: the batch, the number that random draws take
// the step from, learning rate and count of an optimizer.

constexpr int kSteps = 4;

// loss = sum(tanh((x * draws) @ w)), and something like its gradient.
std::shared_ptr<ir::Graph> drawing_graph() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({5, 7}));
  const ValueId w = graph->add_input("w", floats({7, 3}));
  const ValueId number = graph->add_input("number", {ir::DataType::kInt64, {}});
  const NodeId draw = graph->add_node("RandomUniform", {number}, {floats({5, 7})},
                                      {{"shape", std::vector<int64_t>{5, 7}}, {"seed", int64_t{3}}},
                                      std::string(ir::kAutospDomain));
  const ValueId dropped = build.binary("Mul", x, graph->node(draw).outputs[0]);
  const ValueId y = build.unary("Tanh", build.matmul(dropped, w));
  graph->add_output("loss", build.reduce_sum(y, {0, 1}, false));
  graph->add_output("w.grad", build.matmul(build.transpose(dropped, {1, 0}), y));
  return graph;
}

std::shared_ptr<ir::Graph> adam_graph() {
  auto graph = std::make_shared<ir::Graph>();
  std::vector<ValueId> inputs = {graph->add_input("rate", floats({})),
                                 graph->add_input("count", {ir::DataType::kInt64, {}})};
  for (const char* name : {"w", "w.grad", "mean", "square"}) {
    inputs.push_back(graph->add_input(name, floats({7, 3})));
  }
  const ir::Type type = floats({7, 3});
  const NodeId adam =
      graph->add_node("Adam", inputs, {type, type, type}, {}, std::string(ir::kTrainingDomain));
  for (size_t k = 0; const char* name : {"w.new", "mean.new", "square.new"}) {
    graph->add_output(name, graph->node(adam).outputs[k++]);
  }
  return graph;
}

Tensor integer(int64_t value) {
  return Tensor::scalar(ir::DataType::kInt64, static_cast<double>(value));
}

// What is fed in step `k`, from 0.
struct Fed {
  double rate;
  int64_t count;
  int64_t number;
  unsigned batch;
};
using Feeding = std::function<Fed(int k)>;

Fed ordinary(int k) { return {0.1 / (k + 1), k + 1, 10 + k, static_cast<unsigned>(k)}; }

// Losses, and parameters after each step, by step.
std::vector<Arrays> train(test::EmulatedBackend& backend, const Feeding& feeding) {
  const KernelTable kernels = device_kernels(backend);
  const std::vector<Program> programs =
      compile_turns({{drawing_graph(), {"w"}, {{"w.grad", "w.grad"}}},
                     {adam_graph(),
                      {"w", "w.grad", "mean", "square"},
                      {{"w.new", "w"}, {"mean.new", "mean"}, {"square.new", "square"}}}},
                    {.kernels = &kernels});
  std::vector<Arrays> results;
  run_world(1, 60, [&](int, Communicator& communicator) {
    RankDevice device(backend, communicator);
    const auto session = make_session(programs, communicator, {.device = &device});
    const Arrays initial = test::random_feeds(*adam_graph());
    session->keep("w", initial.at("w"));
    for (const char* state : {"mean", "square"}) session->keep(state, Tensor(floats({7, 3})));
    for (int k = 0; k < kSteps; ++k) {
      const Fed fed = feeding(k);
      const Tensor x = test::random_feeds(*step_graph(), {.seed = fed.batch + 1}).at("x");
      Arrays result =
          session->run(programs[0], {{"x", x}, {"number", integer(fed.number)}}).outputs;
      session->run(programs[1], {{"rate", Tensor::scalar(ir::DataType::kFloat32, fed.rate)},
                                 {"count", integer(fed.count)}});
      for (const char* name : {"w", "mean", "square"}) result[name] = session->kept(name);
      results.push_back(std::move(result));
    }
  });
  return results;
}

TEST(ReplayedSteps, GiveTheBitsOfStepsThatAreQueuedAnew) {
  test::EmulatedBackend replaying;
  test::EmulatedBackend queueing({.captures = false});
  const std::vector<Arrays> replayed = train(replaying, ordinary);
  const std::vector<Arrays> queued = train(queueing, ordinary);
  EXPECT_EQ(replaying.counts().replays, 2 * (kSteps - 1));
  EXPECT_EQ(queueing.counts().replays, 0);
  for (size_t k = 0; k < kSteps; ++k) {
    for (const auto& [name, tensor] : queued[k]) {
      EXPECT_TRUE(replayed[k].at(name).identical(tensor)) << name << " of step " << k;
    }
  }
}

// Each of them, where it changes in the last step alone, changes that step.
TEST(ReplayedSteps, SeeEveryNumberThatIsFed) {
  test::EmulatedBackend backend;
  const std::vector<Arrays> usual = train(backend, ordinary);
  const std::pair<const char*, void (*)(Fed&)> changes[] = {
      {"loss", [](Fed& fed) { fed.batch += 100; }},
      {"loss", [](Fed& fed) { fed.number += 100; }},
      {"w", [](Fed& fed) { fed.rate *= 2; }},
      {"w", [](Fed& fed) { fed.count += 100; }}};
  for (const auto& [name, change] : changes) {
    const auto feeding = [change = change](int k) {
      Fed fed = ordinary(k);
      if (k == kSteps - 1) change(fed);
      return fed;
    };
    const std::vector<Arrays> changed = train(backend, feeding);
    EXPECT_TRUE(changed[kSteps - 2].at(name).identical(usual[kSteps - 2].at(name))) << name;
    EXPECT_FALSE(changed[kSteps - 1].at(name).identical(usual[kSteps - 1].at(name))) << name;
  }
}

}  // namespace
}  // namespace autosp::executor
