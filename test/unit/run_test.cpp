// What surrounds a run: external data, time lines, notices.
#include "executor/run.h"
#include "executor/openblas.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "executor/trace.h"
#include "ir/builder.h"

namespace autosp::executor {
namespace {

using testing::HasSubstr;

class RunFiles : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) / fmt::format("run_{}", ::getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // y = weight + weight, with `weight` at `offset` of weights.bin.
  static std::shared_ptr<const ir::Graph> graph_at(int64_t offset) {
    auto graph = std::make_shared<ir::Graph>();
    const ValueId weight =
        graph->add_external("weight", {ir::DataType::kFloat32, {4}}, {"weights.bin", offset, 16});
    graph->add_output("y", ir::Builder(*graph).binary("Add", weight, weight));
    graph->add_output("weight", weight);
    return graph;
  }

  void write_weights(const std::string& before, std::vector<float> values) const {
    std::ofstream file(folder_ / "weights.bin", std::ios::binary);
    file << before;
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
  }

  RunResult run(const std::shared_ptr<const ir::Graph>& graph) const {
    RunOptions options;
    options.data_folder = folder_;
    return run_in_threads({graph}, {{}}, options);
  }

  std::filesystem::path folder_;
};

TEST_F(RunFiles, ExternalDataIsMapped) {
  write_weights("12345678", {1, 2, 3, 4});
  const RunResult result = run(graph_at(8));
  EXPECT_EQ(result.ranks[0].outputs.at("y").value_as_double(3), 8);
  EXPECT_EQ(result.ranks[0].outputs.at("weight").value_as_double(2), 3);
  EXPECT_EQ(result.ranks[0].planned.external, 16);
  EXPECT_EQ(result.ranks[0].planned.arena, 64);
}

TEST_F(RunFiles, ExternalDataNeedNotBeAligned) {
  write_weights("123", {1, 2, 3, 4});
  EXPECT_EQ(run(graph_at(3)).ranks[0].outputs.at("y").value_as_double(3), 8);
}

TEST_F(RunFiles, ExternalDataThatIsMissingOrTruncatedIsNamed) {
  const auto error_of = [&](int64_t offset) -> std::string {
    try {
      run(graph_at(offset));
      return "no error";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_THAT(error_of(0), testing::AllOf(HasSubstr("\"weight\""), HasSubstr("weights.bin")));
  write_weights("", {1, 2, 3, 4});
  EXPECT_THAT(error_of(4),
              testing::AllOf(HasSubstr("needs 16 bytes from byte 4"), HasSubstr("which has 16")));
}

TEST_F(RunFiles, ATraceIsJsonWithOneTrackPerRank) {
  write_trace(folder_ / "trace.json", {{"layer0/\"q\"\n", "MatMul", 0, 0.5, 0.25, 0},
                                       {"exchange", "AllToAll", 1, 1, 2, 96},
                                       {"sum", "AllReduce", 0, 1, 2, 96, true}});
  std::ifstream file(folder_ / "trace.json");
  const nlohmann::json trace = nlohmann::json::parse(file);
  const auto& events = trace.at("traceEvents");
  ASSERT_EQ(events.size(), 9U);  // of three tracks name and order
  EXPECT_EQ(events[4].at("args").at("name"), "rank 0, collectives");
  EXPECT_EQ(events[5].at("args").at("sort_index"), 1);  // below rank 0
  EXPECT_EQ(events[6].at("name"), "layer0/\"q\"\n");
  EXPECT_EQ(events[6].at("ts"), 0.5e6);
  EXPECT_EQ(events[7].at("tid"), 1);
  EXPECT_EQ(events[7].at("args").at("bytes"), 96);
  EXPECT_EQ(events[8].at("tid"), 2);
}

TEST_F(RunFiles, TracingRecordsEveryKernel) {
  write_weights("", {1, 2, 3, 4});
  RunOptions options;
  options.data_folder = folder_;
  options.trace = true;
  const RunResult result = run_in_threads({graph_at(0)}, {{}}, options);
  ASSERT_EQ(result.events.size(), 1U);
  EXPECT_EQ(result.events[0].category, "Add");
}

// Environment variables of one test.
class Environment {
 public:
  ~Environment() {
    for (const char* name : kNames) ::unsetenv(name);
  }
  void set(const char* name, const char* value) { ::setenv(name, value, 1); }
  bool is_clean() const {
    return std::ranges::all_of(kNames,
                               [](const char* name) { return std::getenv(name) == nullptr; });
  }

 private:
  static constexpr const char* kNames[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK",
                                           "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"};
};

TEST(MpiProcesses, AreRecognisedByWhatStartedThem) {
  Environment environment;
  if (!environment.is_clean()) GTEST_SKIP() << "started by mpirun or srun itself";
  EXPECT_EQ(mpi_processes(), 0);
  environment.set("SLURM_NTASKS", "8");  // of an allocation, whose shell is no rank
  EXPECT_EQ(mpi_processes(), 0);
  environment.set("PMIX_RANK", "3");
  EXPECT_EQ(mpi_processes(), 8);
  environment.set("SLURM_STEP_NUM_TASKS", "4");
  EXPECT_EQ(mpi_processes(), 4);
  environment.set("OMPI_COMM_WORLD_SIZE", "2");
  EXPECT_EQ(mpi_processes(), 2);
}

TEST(OpenBlasNotice, IsGivenWhenTheEnvironmentForcesOldKernels) {
  const char* before = std::getenv("OPENBLAS_CORETYPE");
  const std::string saved = before == nullptr ? "" : before;
  unsetenv("OPENBLAS_CORETYPE");
  if (openblas_notice()) {  // this OpenBLAS is older than the machine
    EXPECT_THAT(*openblas_notice(), HasSubstr("set OPENBLAS_CORETYPE="));
  }
  setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
  EXPECT_FALSE(openblas_notice().has_value());
  setenv("OPENBLAS_CORETYPE", "Haswell", 1);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) {
    ASSERT_TRUE(openblas_notice().has_value());
    EXPECT_THAT(*openblas_notice(), HasSubstr("OPENBLAS_CORETYPE=Haswell"));
  }
#endif
  unsetenv("OPENBLAS_CORETYPE");
  if (before != nullptr) setenv("OPENBLAS_CORETYPE", saved.c_str(), 1);
}

}  // namespace
}  // namespace autosp::executor
