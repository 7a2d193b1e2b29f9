// The transport suite among threads, and what happens when ranks go wrong.
#include "executor/transport/threads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "base/error.h"
#include "executor/device.h"
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
    std::vector<Box> send = {{{0}, {3}}, {{3}, {1}}};
    std::vector<Box> receive = send;
    if (me == 1) {
      send = {{{0}, {1}}, {{0}, {2}}};
      receive = {{{0}, {2}}, {{2}, {2}}};
    }
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

// Memory of the host, on which a rank's second wait of a collective (for the others to be done) and
// its copies can be told what to do. Says when its events go.
class StubDevice final : public Device {
 public:
  struct Event final : DeviceEvent {
    explicit Event(std::atomic<bool>& any_gone) : gone(any_gone) {}
    ~Event() override { gone = true; }
    std::atomic<bool>& gone;
  };
  struct Behaviour {
    std::function<void()> wait = [] {};
    std::function<void()> sum = [] {};
  };
  explicit StubDevice(Behaviour behaviour) : behaviour_(std::move(behaviour)) {}

  bool has_lost_events() const { return gone_; }

  std::byte* allocate(int64_t) override { return nullptr; }
  void release(std::byte*) override {}
  Memory memory() const override { return {}; }
  void clear(StreamId, std::byte*, int64_t) override {}
  void upload(StreamId, std::byte*, const void*, int64_t) override {}
  void download(StreamId, void*, const std::byte*, int64_t) override {}
  std::unique_ptr<DeviceEvent> make_event() override { return std::make_unique<Event>(gone_); }
  void record(StreamId, DeviceEvent&) override {}
  void wait(StreamId, DeviceEvent&) override { behaviour_.wait(); }
  double seconds_between(DeviceEvent&, DeviceEvent&) override { return 0; }
  void synchronize() override {}
  void copy_box(StreamId, size_t, const ConstBuffer&, const Box&, const Buffer&,
                const Box&) override {}
  void sum_boxes(StreamId, ir::DataType, std::span<const std::byte* const>, const ir::Shape&,
                 const Box&, std::byte*) override {
    behaviour_.sum();
  }
  int32_t* faults() override { return nullptr; }
  std::unique_ptr<CapturedStep> capture(const std::function<void()>&) override { return nullptr; }
  void replay(CapturedStep&) override {}

 private:
  Behaviour behaviour_;
  std::atomic<bool> gone_ = false;
};

void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(50)); }

// A rank that fails in a collective keeps its events while the others are on their way to them.
TEST(ThreadTransportDevices, OfARankThatFailsStayUntilTheOthersHaveGone) {
  StubDevice failing({.sum = [] { throw Error("the sum is lost"); }});
  std::atomic<bool> were_lost = false;
  StubDevice slow({.wait = [&] {
    pause();
    were_lost = were_lost || failing.has_lost_events();
  }});
  StubDevice waiting({});
  const std::array<StubDevice*, 3> devices = {&slow, &failing, &waiting};
  const std::string failure = run_world(3, 60, [&](Communicator& world) {
    world.use(devices[static_cast<size_t>(world.rank())]);
    try {
      reduce(world, "layer0/dw", {0, 1, 2});
    } catch (...) {
      world.use(nullptr);
      throw;
    }
  });
  EXPECT_THAT(failure, HasSubstr("the sum is lost"));
  EXPECT_FALSE(were_lost);
  EXPECT_TRUE(failing.has_lost_events());
}

// A failure elsewhere ends nobody in the middle of a collective; the next one does not begin.
TEST(ThreadTransportDevices, OfOtherGroupsEndBehindTheCollectiveTheyAreIn) {
  StubDevice slow({.wait = pause});
  StubDevice fast({});
  std::atomic<int> completed = 0;
  const std::string failure = run_world(4, 60, [&](Communicator& world) {
    const int me = world.rank();
    world.use(me == 1 ? &slow : &fast);
    if (me == 2) {
      pause();
      throw Error("rank 2 computes nonsense");
    }
    reduce(world, "layer0/dw", me < 2 ? std::vector<int>{0, 1} : std::vector<int>{2, 3});
    ++completed;
    pause();
    pause();
    reduce(world, "layer1/dw", {0, 1});
    ++completed;
  });
  EXPECT_THAT(failure, HasSubstr("rank 2 computes nonsense"));
  EXPECT_EQ(completed, 2);
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

// As two sessions that name one rank, or two runs of one session, do.
TEST(ThreadTransportErrors, ASecondCollectiveOfARankAtTheSameTimeIsRefused) {
  ThreadWorld world(2, 30);
  std::array<std::string, 2> failures;
  const auto run = [&](size_t which) {
    try {
      reduce(world.rank(0), "a", {0, 1});
    } catch (const Interrupted&) {
      failures[which] = "Interrupted";
    } catch (const Error& error) {
      world.fail(0, std::current_exception());
      failures[which] = error.what();
    }
  };
  {
    const std::jthread first([&] { run(0); });
    const std::jthread second([&] { run(1); });
  }
  std::ranges::sort(failures);
  EXPECT_EQ(failures[0], "Interrupted");
  EXPECT_THAT(failures[1], HasSubstr("rank 0 comes to AllReduce \"a\""));
  EXPECT_THAT(failures[1], HasSubstr("already in a collective"));
}

// The others may still be reading what the first run has posted.
TEST(ThreadTransportErrors, RunsThatActAsOneRankNeverCrash) {
  for (int round = 0; round < 20; ++round) {
    ThreadWorld world(2, 30);
    std::array<std::jthread, 4> threads;
    for (int k = 0; k < 4; ++k) {
      threads[static_cast<size_t>(k)] = std::jthread([&world, k] {
        try {
          for (int i = 0; i < 50; ++i) reduce(world.rank(k % 2), "a", {0, 1}, 1000);
        } catch (const Interrupted&) {
          return;
        } catch (...) {
          world.fail(k % 2, std::current_exception());
        }
      });
    }
  }
}

}  // namespace
}  // namespace autosp::executor
