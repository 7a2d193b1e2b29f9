// cuDNN's own word, without a GPU, on the attention graphs that it is asked for: valid for Hopper,
// and refused where heads do not fit together.
#include <gtest/gtest.h>

#include "base/error.h"
#include "cuda/cudnn_attention.h"
#include "cuda/library.h"

namespace autosp::cuda {
namespace {

constexpr int kHopper = 90;

AttentionShape llama_8b(bool causal, bool backward) {
  return {.type = ir::DataType::kBFloat16,
          .batch = 1,
          .query_heads = 32,
          .kv_heads = 8,
          .queries = 4096,
          .keys = 4096,
          .width = 128,
          .value_width = 128,
          .scale = 0.088388F,
          .causal = causal,
          .backward = backward};
}

class CudnnAttentionGraphs : public testing::Test {
 protected:
  void SetUp() override {
    if (cudnn().handle() == nullptr) GTEST_SKIP() << "cuDNN was not found";
  }
};

TEST_F(CudnnAttentionGraphs, AreValid) {
  for (const bool backward : {false, true}) {
    for (const bool causal : {false, true}) {
      AttentionShape shape = llama_8b(causal, backward);
      EXPECT_EQ(check_attention(shape, kHopper), "") << causal << backward;
      shape.ordered = !backward;
      EXPECT_EQ(check_attention(shape, kHopper), "") << causal << backward;
      shape.keeps_statistics = backward;  // a forward pass that is recomputed later keeps none
      EXPECT_EQ(check_attention(shape, kHopper), "") << causal << backward;
      shape.type = ir::DataType::kFloat16;
      shape.width = shape.value_width = 64;
      shape.queries = shape.keys = 1000;
      shape.batch = 3;
      EXPECT_EQ(check_attention(shape, kHopper), "") << causal << backward;
    }
  }
}

TEST_F(CudnnAttentionGraphs, ThatMakeNoSenseAreRefused) {
  AttentionShape shape = llama_8b(true, false);
  shape.kv_heads = 5;
  EXPECT_NE(check_attention(shape, kHopper), "");
  shape = llama_8b(true, true);
  shape.width = 130;
  EXPECT_NE(check_attention(shape, kHopper), "");
}

}  // namespace
}  // namespace autosp::cuda
