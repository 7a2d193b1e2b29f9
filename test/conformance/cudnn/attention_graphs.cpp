// cuDNN's own word, without a GPU, on the attention graphs that it is asked for: it has plans for
// an H200, and none where heads do not fit together.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "cuda/cudnn_attention.h"
#include "cuda/library.h"

namespace autosp::cuda {
namespace {

constexpr int kHopper = 90;

// As cuDNN writes an H200's.
constexpr const char* kH200 = R"({
  "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0,
  "totalGlobalMem": 150754820096, "l2CacheSize": 62914560, "multiProcessorCount": 132,
  "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
  "warpSize": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "maxCtasPerSM": 32,
  "regsPerBlock": 65536, "maxRegistersPerSM": 65536, "maxSharedMemoryPerBlock": 49152,
  "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
  "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "pciDeviceId": 0, "isTccDriver": 0,
  "supportCoopLaunch": 1})";

std::string check(const AttentionShape& shape) { return check_attention(shape, kHopper, kH200); }

constexpr Band kAll{};
constexpr Band kCausal{.before = {}, .after = 0};

AttentionShape llama_8b(Band band, bool backward) {
  return {.type = ir::DataType::kBFloat16,
          .batch = 1,
          .query_heads = 32,
          .kv_heads = 8,
          .queries = 4096,
          .keys = 4096,
          .width = 128,
          .value_width = 128,
          .scale = 0.088388F,
          .band = band,
          .backward = backward};
}

// What cuDNN needs of a driver, the toolkit's stub has too.
class CudnnAttentionGraphs : public testing::Test {
 protected:
  void SetUp() override {
    if (cudnn().handle() == nullptr) GTEST_SKIP() << "cuDNN was not found";
    if (dlopen("libcuda.so.1", RTLD_NOW) == nullptr)
      GTEST_SKIP() << "no driver, and no stub of one";
  }
};

TEST_F(CudnnAttentionGraphs, HavePlans) {
  for (const bool backward : {false, true}) {
    for (const Band& band : {kAll, kCausal}) {
      AttentionShape shape = llama_8b(band, backward);
      EXPECT_EQ(check(shape), "") << backward;
      shape.ordered = !backward;
      EXPECT_EQ(check(shape), "") << backward;
      shape.keeps_statistics = backward;  // a forward pass that is recomputed later keeps none
      EXPECT_EQ(check(shape), "") << backward;
      shape.type = ir::DataType::kFloat16;
      shape.width = shape.value_width = 64;
      shape.queries = shape.keys = 1000;
      shape.batch = 3;
      EXPECT_EQ(check(shape), "") << backward;
    }
  }
}

TEST_F(CudnnAttentionGraphs, OfWindowsHavePlans) {
  for (const bool backward : {false, true}) {
    for (const Band& band : {Band{1024, 0}, Band{1025, 1024}, Band{1, 4096}, Band{{}, 2048}}) {
      for (const int64_t queries : {4096, 2048, 1000}) {
        AttentionShape shape = llama_8b(band, backward);
        shape.queries = queries;
        EXPECT_EQ(check(shape), "") << backward << queries;
      }
    }
  }
}

TEST_F(CudnnAttentionGraphs, OfOtherWidthsHavePlans) {
  for (const bool backward : {false, true}) {
    for (const auto& [width, value_width] : {std::pair{80, 80}, {192, 128}, {256, 256}}) {
      AttentionShape shape = llama_8b(kCausal, backward);
      shape.width = width;
      shape.value_width = value_width;
      EXPECT_EQ(check(shape), "") << backward << width;
    }
  }
}

TEST_F(CudnnAttentionGraphs, ThatMakeNoSenseAreRefused) {
  AttentionShape shape = llama_8b(kCausal, false);
  shape.kv_heads = 5;
  EXPECT_NE(check(shape), "");
  shape = llama_8b(kCausal, true);
  shape.width = 130;
  EXPECT_NE(check(shape), "");
  shape = llama_8b({.before = 1024, .after = 0}, false);
  shape.queries = 8192;  // some would see no key
  EXPECT_NE(check(shape), "");
}

// --- Which graphs have a band.

std::optional<Band> band(int64_t keys, const std::vector<int64_t>& begins,
                         const std::vector<int64_t>& ends) {
  ir::Graph graph;
  const auto held = [&](const std::vector<int64_t>& numbers) {
    if (numbers.empty()) return ValueId();
    return graph.add_constant(
        ir::Tensor::from_values<int64_t>({1, static_cast<int64_t>(numbers.size())}, numbers));
  };
  const auto queries = static_cast<int64_t>(std::max(begins.size(), ends.size()));
  return band_of(graph, held(begins), held(ends), queries, keys);
}

TEST(AttentionBands, AreReadOffTheirBounds) {
  EXPECT_EQ(band(4, {}, {}), kAll);
  EXPECT_EQ(band(4, {0, 0, 0, 0}, {4, 4, 5, 9}), kAll);
  EXPECT_EQ(band(4, {}, {1, 2, 3, 4}), kCausal);
  EXPECT_EQ(band(4, {-1, 0, 1, 2}, {1, 2, 3, 4}), (Band{2, 0}));
  EXPECT_EQ(band(4, {0, 0, 1, 2}, {2, 3, 4, 4}), (Band{2, 1}));
  EXPECT_EQ(band(4, {0, 0, 0, 0}, {2, 3, 4, 5}), (Band{{}, 1}));
  EXPECT_EQ(band(4, {}, {3, 4}), (Band{{}, 2}));  // the last two queries of four
  EXPECT_EQ(band(2, {}, {1, 2, 2, 2}), kCausal);  // more queries than keys
}

TEST(AttentionBands, AreNoneWhereBoundsAreNotAlongADiagonal) {
  EXPECT_EQ(band(4, {}, {1, 2, 2, 4}), std::nullopt);
  EXPECT_EQ(band(4, {}, {0, 1, 2, 3}), std::nullopt);  // the first sees no key
  EXPECT_EQ(band(4, {1, 2}, {}), std::nullopt);        // the first sees not even its own
  EXPECT_EQ(band(4, {0, 0, 0, 1}, {1, 2, 3, 3}), std::nullopt);
  EXPECT_EQ(band(2, {0, 0, 1, 2}, {1, 2, 2, 2}), std::nullopt);  // the last sees no key
}

}  // namespace
}  // namespace autosp::cuda
