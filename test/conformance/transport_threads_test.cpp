// The transport suite among threads, and what happens when ranks go wrong.
#include "executor/transport/threads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/error.h"
#include "ir/tensor.h"
#include "transport_suite.h"

namespace autosp::executor {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Runs `body` in every rank of a world; what() of the first failure, or "".
template <typename F>
std::string run_world(int size, double timeout, F&& body) {
  ThreadWorld world(size, timeout);
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          body(world.rank(rank));
          world.finish(rank);
        } catch (const Interrupted&) {
          world.finish(rank);
        } catch (...) {
          world.fail(rank, std::current_exception());
        }
      });
    }
  }
  try {
    if (const std::exception_ptr failure = world.failure()) std::rethrow_exception(failure);
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

class ThreadTransport : public testing::TestWithParam<std::tuple<TransportCase, int>> {};

TEST_P(ThreadTransport, DoesWhatTheSuiteAsks) {
  const auto& [suite_case, size] = GetParam();
  const std::string failure = run_world(size, 30, [&](Communicator& world) {
    const std::string wrong = suite_case.run(world);
    if (!wrong.empty()) throw Error("rank {}: {}", world.rank(), wrong);
  });
  EXPECT_EQ(failure, "");
}

INSTANTIATE_TEST_SUITE_P(Suite, ThreadTransport,
                         testing::Combine(testing::ValuesIn(transport_cases()),
                                          testing::Values(1, 2, 3, 4, 7)),
                         [](const auto& parameters) {
                           return std::get<0>(parameters.param).name + "On" +
                                  std::to_string(std::get<1>(parameters.param));
                         });

Collective collective(const std::string& node, const std::string& op, std::vector<int> group) {
  return {node, op, std::move(group), ir::DataType::kFloat32};
}

void reduce(Communicator& world, const std::string& node, std::vector<int> group,
            int64_t count = 4) {
  const ir::Tensor x({ir::DataType::kFloat32, {count}});
  ir::Tensor y(x.type());
  world.all_reduce(collective(node, "AllReduce", std::move(group)), {x.bytes().data(), x.shape()},
                   {y.mutable_bytes(), y.shape()});
}

TEST(ThreadTransportErrors, DifferentCollectivesAreBothNamed) {
  const std::string failure = run_world(3, 30, [](Communicator& world) {
    reduce(world, world.rank() == 1 ? "layer1/dw" : "layer0/dw", {0, 1, 2});
  });
  EXPECT_THAT(failure, AllOf(HasSubstr("different collectives"), HasSubstr("layer0/dw"),
                             HasSubstr("layer1/dw"), HasSubstr("rank 1")));
}

TEST(ThreadTransportErrors, SizesThatDoNotFitAreNamed) {
  const std::string failure = run_world(2, 30, [](Communicator& world) {
    reduce(world, "dw", {0, 1}, world.rank() == 0 ? 4 : 5);
  });
  EXPECT_THAT(failure, AllOf(HasSubstr("dw"), HasSubstr("[4]"), HasSubstr("[5]")));
}

TEST(ThreadTransportErrors, BoxesThatDoNotFitAreNamed) {
  const std::string failure = run_world(2, 30, [](Communicator& world) {
    const int me = world.rank();
    const ir::Tensor x({ir::DataType::kFloat32, {4}});
    ir::Tensor y(x.type());
    // Rank 0 sends 1 element to rank 1, which expects 2.
    const std::vector<Box> send = me == 0 ? std::vector<Box>{{{0}, {3}}, {{3}, {1}}}
                                          : std::vector<Box>{{{0}, {1}}, {{0}, {2}}};
    const std::vector<Box> receive = me == 0 ? std::vector<Box>{{{0}, {3}}, {{3}, {1}}}
                                             : std::vector<Box>{{{0}, {2}}, {{2}, {2}}};
    world.all_to_all(collective("q", "AllToAll", {0, 1}), {x.bytes().data(), x.shape()},
                     {y.mutable_bytes(), y.shape()}, send, receive);
  });
  EXPECT_THAT(failure, HasSubstr("rank 0 sends 1 elements to rank 1, which expects 2"));
}

TEST(ThreadTransportErrors, ARankThatIsLateIsNamed) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string failure = run_world(3, 0.2, [](Communicator& world) {
    if (world.rank() == 2) std::this_thread::sleep_for(std::chrono::milliseconds(800));
    reduce(world, "layer0/dw", {0, 1, 2});
  });
  EXPECT_THAT(failure, AllOf(HasSubstr("has waited 0.2 s"), HasSubstr("layer0/dw"),
                             HasSubstr("for rank 2"), HasSubstr("rank 2 computes")));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST(ThreadTransportErrors, WaitingForARankThatHasFinishedEndsAtOnce) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string failure = run_world(3, 60, [](Communicator& world) {
    if (world.rank() != 1) reduce(world, "layer0/dw", {0, 1, 2});
  });
  EXPECT_THAT(failure, AllOf(HasSubstr("layer0/dw"), HasSubstr("rank 1 has finished")));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(ThreadTransportErrors, ADeadlockBetweenGroupsEndsAtOnce) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string failure = run_world(3, 60, [](Communicator& world) {
    const int me = world.rank();
    reduce(world, "ring", {me, (me + 1) % 3});  // each waits for the next
  });
  EXPECT_THAT(failure, AllOf(HasSubstr("waits in vain"), HasSubstr("waits in AllReduce \"ring\"")));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(ThreadTransportErrors, TheErrorOfTheRankThatFailedIsTheOneReported) {
  const std::string failure = run_world(4, 60, [](Communicator& world) {
    reduce(world, "a", {0, 1, 2, 3});
    if (world.rank() == 3) throw Error("index 12 is outside the table");
    reduce(world, "b", {0, 1, 2, 3});
  });
  EXPECT_THAT(failure, HasSubstr("index 12 is outside the table"));
}

TEST(ThreadTransportErrors, WrongSizesInOneRankGraphAreAnError) {
  const std::string failure = run_world(2, 60, [](Communicator& world) {
    const ir::Tensor x({ir::DataType::kFloat32, {2}});
    ir::Tensor y({ir::DataType::kFloat32, {4}});
    world.all_gather(collective("k", "AllGather", {0, 1}), {x.bytes().data(), x.shape()},
                     {y.mutable_bytes(), y.shape()}, 0, {2, 3});
  });
  EXPECT_THAT(failure, AllOf(HasSubstr("AllGather \"k\""), HasSubstr("sizes [2, 3]")));
}

}  // namespace
}  // namespace autosp::executor
