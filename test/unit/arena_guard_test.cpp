// Kernels that leave the memory they were given, in builds with the address sanitizer.
#include "executor/arena_guard.h"

#include <gtest/gtest.h>

#include "executor/run.h"
#include "ir/builder.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;

// "Exp" asks for this much scratch memory, but writes 100 bytes.
template <int64_t kAsked>
const KernelTable& careless() {
  static const KernelTable kTable(
      "test", {{"", "Exp", nullptr,
                [](const KernelCall& call) {
                  for (int k = 0; k < 100; ++k) call.workspace[k] = std::byte{1};
                  static_cast<float*>(call.call.results[0].data)[0] = 1;
                },
                [](const ir::Graph&, const ir::Node&, int) { return kAsked; }}});
  return kTable;
}

// The results are live while Exp runs, so that its scratch memory lies among other buffers.
std::shared_ptr<const ir::Graph> graph() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", {DataType::kFloat32, {33}});
  const ValueId a = build.unary("Neg", x);
  const ValueId b = build.unary("Abs", a);
  graph->add_output("a", a);
  graph->add_output("b", b);
  graph->add_output("y", build.unary("Exp", b));
  return graph;
}

void run(const KernelTable& kernels) {
  RunOptions options{.threads_per_rank = 1};
  options.compile.kernels = &kernels;
  run_in_threads({graph()}, {test::random_feeds(*graph())}, options);
}

TEST(ArenaGuard, NoticesScratchMemoryThatIsTooSmall) {
  if constexpr (!ArenaGuard::kActive) GTEST_SKIP() << "needs the address sanitizer";
  run(careless<100>());
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(run(careless<99>()), "use-after-poison");
  EXPECT_DEATH(run(careless<36>()), "use-after-poison");
}

}  // namespace
}  // namespace autosp::executor
