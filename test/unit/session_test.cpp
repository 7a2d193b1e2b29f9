#include "executor/session.h"

#include <gtest/gtest.h>

#include <optional>

#include "executor/rank_device.h"
#include "executor/run.h"
#include "executor/world.h"
#include "ir/builder.h"
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

const KeptOutputs kStepKeeps = {{"w.grad", "w.grad"}};
const KeptOutputs kUpdateKeeps = {{"w.new", "w"}};

class Sessions : public testing::TestWithParam<bool> {
 protected:
  // Calls `use` with a session of the step and the update.
  template <typename Use>
  void with_session(const Use& use) {
    const KernelTable device_table = device_kernels(backend_);
    const CompileOptions options{.kernels = GetParam() ? &device_table : nullptr};
    const Program step = compile(step_graph(), options);
    const Program update = compile(update_graph(), options);
    run_world(1, 60, [&](int, Communicator& communicator) {
      std::optional<RankDevice> device;
      if (GetParam()) device.emplace(backend_, communicator);
      const auto session = make_session({{&step, {"w"}}, {&update, {"w", "w.grad"}}}, communicator,
                                        {.device = device ? &*device : nullptr});
      use(*session, step, update);
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
      const RankResult result = session.run(step, {{"x", x}}, kStepKeeps);
      test::expect_close(result.outputs, {{"loss", gradients.at("loss")}});
      session.run(update, {{"x", expected.at("x")}}, kUpdateKeeps);
      test::expect_close({{"w", before}}, {{"w", expected.at("w")}});
      expected["w"] = test::run_graph(*update_graph(), expected).at("w.new");
      test::expect_close({{"w", session.kept("w")}}, {{"w", expected.at("w")}});
    }
  });
}

// An output that is an input itself is what that was before the run, whatever else is kept.
TEST_P(Sessions, KeepInputsThatAreOutputs) {
  const Arrays feeds = test::random_feeds(*update_graph());
  with_session([&](Session& session, const Program&, const Program& update) {
    for (const char* name : {"w", "w.grad"}) session.keep(name, feeds.at(name));
    session.run(update, feeds, {{"w.new", "w"}, {"before.new", "w.grad"}});
    test::expect_close({{"w.grad", session.kept("w.grad")}}, {{"w.grad", feeds.at("w")}});
  });
}

// What is fed is of one run of one program; what is kept is not replaced by it.
TEST_P(Sessions, KeepWhatIsKeptAndForgetWhatIsFed) {
  const Arrays feeds = test::random_feeds(*step_graph());
  const Tensor loss = test::run_graph(*step_graph(), feeds).at("loss");
  with_session([&](Session& session, const Program& step, const Program&) {
    session.keep("w", feeds.at("w"));
    const Arrays other = {{"x", feeds.at("x")}, {"w", Tensor(floats({7, 3}))}};
    test::expect_close({{"loss", session.run(step, other, kStepKeeps).outputs.at("loss")}},
                       {{"loss", loss}});
    test::expect_close({{"w", session.kept("w")}}, {{"w", feeds.at("w")}});
    try {
      session.run(step, {{"y", feeds.at("x")}}, kStepKeeps);
      FAIL() << "x is not fed";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("input \"x\""), std::string::npos) << error.what();
    }
  });
}

TEST_P(Sessions, HaveNothingOfWhatWasDropped) {
  const Arrays feeds = test::random_feeds(*step_graph());
  with_session([&](Session& session, const Program& step, const Program&) {
    EXPECT_THROW(session.run(step, feeds), InternalError);
    session.keep("w", feeds.at("w"));
    EXPECT_EQ(session.kept_bytes("w"), 7 * 3 * 4);
    session.drop("w");
    EXPECT_EQ(session.kept_bytes("w"), 0);
    EXPECT_THROW(session.run(step, feeds), InternalError);
  });
}

TEST_P(Sessions, KeepZeros) {
  const Arrays feeds = test::random_feeds(*update_graph());
  with_session([&](Session& session, const Program&, const Program& update) {
    session.keep("w", feeds.at("w"));
    session.keep("w.grad", feeds.at("w.grad"));
    session.keep_zeros("w.grad", floats({7, 3}));
    session.run(update, feeds, kUpdateKeeps);
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
    session.run(step, {{"x", feeds.at("x")}}, kStepKeeps);
    session.run(update, {{"x", Tensor::scalar(ir::DataType::kFloat32, 0.5)}}, kUpdateKeeps);
    const int64_t uploads = backend_.counts().uploads;
    session.run(step, {{"x", feeds.at("x")}}, kStepKeeps);  // what is there is not brought again
    EXPECT_EQ(backend_.counts().uploads, uploads);
    session.run(update, {{"x", Tensor::scalar(ir::DataType::kFloat32, 0.5)}}, kUpdateKeeps);
    EXPECT_EQ(backend_.counts().uploads, uploads + 1);
    session.keep_zeros("w.grad", floats({7, 3}));
    EXPECT_EQ(backend_.counts().uploads, uploads + 1);
    EXPECT_EQ(backend_.counts().allocations, 1);
  });
  EXPECT_EQ(backend_.counts().live_bytes, 0);
}

INSTANTIATE_TEST_SUITE_P(Places, DeviceSessions, testing::Values(true),
                         [](const auto&) { return "Device"; });

}  // namespace
}  // namespace autosp::executor
