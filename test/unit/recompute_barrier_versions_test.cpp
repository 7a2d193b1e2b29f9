#include <gtest/gtest.h>

#include "onnxruntime/recompute_barrier.h"

namespace autosp::onnxruntime {

TEST(RecomputeBarrierOperator, IsForRuntimesThatTakeTwoOperandsOfAnyType) {
  for (const char* version : {"1.22.0", "1.31.1", "1.22", "2.0.0", "1.100.0-rc1"}) {
    EXPECT_TRUE(takes_recompute_barrier(version)) << version;
  }
  for (const char* version : {"1.17.0", "1.18.1", "1.21.1", "0.30.0", "", "1", "1.", "one.22"}) {
    EXPECT_FALSE(takes_recompute_barrier(version)) << version;
  }
}

}  // namespace autosp::onnxruntime
