#include "onnx/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace autosp::onnx_io {
namespace {

using testing::HasSubstr;

Manifest example() {
  Manifest manifest;
  manifest.tool_version = "0.1.0";
  manifest.model_name = "model.onnx";
  manifest.model_bytes = int64_t{3} << 40;
  manifest.opset = 20;
  manifest.dims = {{"seq", 61}};
  manifest.mesh = {{"dp", 1}, {"u", 2}};
  manifest.ranks = {{0, "rank_0.onnx", {0, 0}}, {1, "rank_1.onnx", {0, 1}}};
  manifest.inputs = {{.name = "input_ids",
                      .type = {ir::DataType::kInt64, {1, 61}},
                      .role = InputRole::kData,
                      .slices = {{{0, 0}, {1, 31}}, {{0, 31}, {1, 30}}}},
                     {.name = "w",
                      .type = {ir::DataType::kBFloat16, {7, 3}},
                      .role = InputRole::kParameter,
                      .slices = {}}};
  manifest.outputs = {{"loss", {ir::DataType::kFloat32, {}}, OutputRole::kLoss, ""},
                      {"w.grad", {ir::DataType::kBFloat16, {7, 3}}, OutputRole::kGradient, "w"}};
  manifest.collectives = {
      {"a2a", "AllToAll", "q", {"u"}, 2, 1000, Phase::kForward, Purpose::kReshard},
      {"sum", "AllReduce", "w.grad", {"dp", "u"}, 2, 42, Phase::kBackward, Purpose::kGradient}};
  manifest.recompute = {"sac", 17, int64_t{3} << 33};
  manifest.random = {.seed = int64_t{1} << 53, .step_input = "step"};
  manifest.warnings = {"a \"quoted\" warning"};
  manifest.plan_hash = fingerprint("plan");
  return manifest;
}

TEST(Manifest, SurvivesJson) {
  const std::string json = to_json(example());
  EXPECT_EQ(to_json(parse_manifest(json, "it")), json);
  const Manifest read = parse_manifest(json, "it");
  EXPECT_EQ(read.model_bytes, int64_t{3} << 40);
  EXPECT_EQ(read.inputs[0].slices[1].begin, (std::vector<int64_t>{0, 31}));
  EXPECT_EQ(read.outputs[1].role, OutputRole::kGradient);
  EXPECT_EQ(read.collectives[1].purpose, Purpose::kGradient);
  EXPECT_EQ(read.recompute.policy, "sac");
  EXPECT_EQ(read.recompute.kept_bytes, int64_t{3} << 33);
  ASSERT_TRUE(read.random.has_value());
  EXPECT_EQ(read.random->seed, int64_t{1} << 53);
  EXPECT_EQ(read.random->step_input, "step");
}

TEST(Manifest, AModelThatDrawsNothingSaysNothingOfIt) {
  Manifest manifest = example();
  manifest.random.reset();
  const std::string json = to_json(manifest);
  EXPECT_EQ(json.find("random"), std::string::npos);
  EXPECT_FALSE(parse_manifest(json, "it").random.has_value());
}

// What scripts read: names as in the schema, numbers as numbers.
TEST(Manifest, JsonIsFitForScripts) {
  const std::string json = to_json(example());
  EXPECT_THAT(json, HasSubstr("\"bytes_per_rank\": 1042"));
  EXPECT_THAT(json, HasSubstr("\"bytes\": 3298534883328"));
  EXPECT_THAT(json, HasSubstr("\"role\": \"data\""));
  EXPECT_THAT(json, HasSubstr("\"role\": \"gradient\""));
  EXPECT_THAT(json, HasSubstr("\"phase\": \"backward\""));
  EXPECT_THAT(json, HasSubstr("\"dtype\": \"bfloat16\""));
}

TEST(Manifest, TotalsAreSumsByPhase) {
  const ManifestTotals totals = example().totals();
  EXPECT_EQ(totals.collectives, 2);
  EXPECT_EQ(totals.forward_bytes_per_rank, 1000);
  EXPECT_EQ(totals.backward_bytes_per_rank, 42);
}

std::string error_of(const std::string& json) {
  try {
    parse_manifest(json, "'m.json'");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string with(const std::function<void(Manifest&)>& change) {
  Manifest manifest = example();
  change(manifest);
  return error_of(to_json(manifest));
}

TEST(Manifest, RefusesWhatDoesNotHold) {
  EXPECT_THAT(error_of("hello"), HasSubstr("'m.json' is not a manifest"));
  EXPECT_THAT(error_of("{}"), HasSubstr("not a manifest"));
  EXPECT_THAT(error_of(R"({"tool": "autosp-onnx", "format": 9})"), HasSubstr("has format 9"));
  EXPECT_THAT(with([](Manifest& m) { m.mesh[1].size = 3; }), HasSubstr("3 ranks, but it lists 2"));
  EXPECT_THAT(with([](Manifest& m) { m.ranks[1].rank = 5; }), HasSubstr("lacks rank 1"));
  EXPECT_THAT(with([](Manifest& m) { m.ranks[1].file = "../x.onnx"; }), HasSubstr("'../x.onnx'"));
  EXPECT_THAT(with([](Manifest& m) { m.inputs[0].slices[1].extent[1] = 31; }),
              HasSubstr("slice of rank 1 is outside input 'input_ids'"));
  EXPECT_THAT(with([](Manifest& m) { m.inputs[0].slices.pop_back(); }), HasSubstr("1 of 2 ranks"));
}

TEST(Manifest, IsReadFromTheFolderItWasWrittenTo) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "manifest_folder";
  std::filesystem::create_directories(folder);
  EXPECT_THROW(read_manifest(folder), Error);
  write_manifest(example(), folder);
  EXPECT_EQ(read_manifest(folder).ranks.size(), 2u);
  std::filesystem::remove_all(folder);
}

TEST(Manifest, FingerprintIsFnv1a) {
  EXPECT_EQ(fingerprint(""), "cbf29ce484222325");
  EXPECT_EQ(fingerprint("a"), "af63dc4c8601ec8c");
}

}  // namespace
}  // namespace autosp::onnx_io
