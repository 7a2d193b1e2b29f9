// The order in which threads run on the emulated device: kernels that race give themselves away.
#include "support/emulated_device.h"

#include <gtest/gtest.h>

#include "cuda/kernels/launch.h"

namespace autosp::test {
namespace {

using executor::StreamId;
using kernels::kLanes;

// Each element is one more than the next, which another thread writes.
struct AddToTheNext {
  int32_t* y;
  int64_t count;
  void operator()(int64_t i) const { y[i] = i + 1 < count ? y[i + 1] + 1 : 1; }
};

// In a phase, each thread reads what its neighbour writes in the same phase (`races`) or the last.
struct PassOn {
  struct Shared {
    int32_t value[kLanes];
  };
  int32_t* y;
  bool races;
  int phases() const { return races ? 1 : 2; }
  void operator()(int64_t row, int lane, int phase, Shared& shared) const {
    if (phase == 0) shared.value[lane] = lane;
    if (phase + 1 == phases()) y[row * kLanes + lane] = shared.value[(lane + 1) % kLanes];
  }
};

template <typename Queueing>
std::vector<int32_t> run(bool backwards, int64_t count, const Queueing& queue_on) {
  EmulatedBackend backend({.backwards = backwards});
  const auto device = backend.open(0);
  const auto bytes = static_cast<int64_t>(sizeof(int32_t)) * count;
  std::byte* memory = device->allocate(bytes);
  device->clear(StreamId::kCompute, memory, bytes);
  queue_on(kernels::Queue(*device, StreamId::kCompute), reinterpret_cast<int32_t*>(memory));
  std::vector<int32_t> result(static_cast<size_t>(count));
  device->download(StreamId::kCompute, result.data(), memory, bytes);
  device->release(memory);
  return result;
}

TEST(EmulatedDevice, ThreadsOfAKernelThatReadEachOthersResultsDependOnTheirOrder) {
  const auto race = [](const kernels::Queue& queue, int32_t* y) {
    kernels::launch(queue, 4, AddToTheNext{y, 4});
  };
  EXPECT_EQ(run(false, 4, race), (std::vector<int32_t>{1, 1, 1, 1}));
  EXPECT_EQ(run(true, 4, race), (std::vector<int32_t>{4, 3, 2, 1}));
}

TEST(EmulatedDevice, ThreadsOfABlockThatDoNotWaitForEachOtherDependOnTheirOrder) {
  constexpr int64_t kCount = int64_t{2} * kLanes;
  for (const bool races : {false, true}) {
    const auto pass_on = [races](const kernels::Queue& queue, int32_t* y) {
      kernels::launch_rows(queue, 2, PassOn{y, races});
    };
    EXPECT_EQ(run(false, kCount, pass_on) != run(true, kCount, pass_on), races);
  }
}

}  // namespace
}  // namespace autosp::test
