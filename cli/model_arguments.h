// Options that several commands share, and what they lead to: the canonical graph, its roles, a
// plan.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "ir/graph.h"
#include "onnx/model.h"
#include "shard/plan.h"
#include "transforms/pipeline.h"

namespace autosp::cli {

struct ModelArguments {
  std::filesystem::path model;
  std::vector<std::string> dims;       // NAME=VALUE
  std::vector<std::string> sequence;   // INPUT:AXIS
  std::vector<std::string> batch;      // INPUT:AXIS
  std::string loss;                    // output name
  std::vector<std::string> gradients;  // PARAMETER=OUTPUT
  int64_t seed = 0;                    // of random operators without one
  bool train = false;                  // trained initializers become inputs
};

struct PassArguments {
  std::string attention = "fused";  // or "unfused"
  std::vector<std::string> passes;
  std::vector<std::string> print_after;
  bool timing = false;
};

// What the input is called that draws read the number of the step from, unless the model has one of
// that name.
inline constexpr const char* kStepInput = "autosp_step";

struct PlanArguments {
  std::optional<int64_t> sp;
  int64_t dp = 1;
  std::vector<std::string> sp_mesh;  // AXIS=SIZE
  bool strict = false;
  std::string ring = "off";                // "on", "zigzag"; "auto", which with_ring_chosen settles
  std::filesystem::path deepspeed_config;  // sp and dp may come from it
  std::optional<int64_t> batch;            // samples of a step, as the configuration has it

  // As asked for, or what the sizes of sp_mesh multiply to, or 1.
  int64_t ranks() const;
};

// What a command runs a sharded model with.
struct FeedArguments {
  std::filesystem::path feed;  // empty: inputs are generated
  uint64_t seed = 1;           // of generated inputs
  // NAME=VALUE: the length of a sequence that was left open, else that of the feed or, without one,
  // the length that was planned for.
  std::vector<std::string> dims;
};

void add_model_options(CLI::App& command, ModelArguments& arguments);
void add_pass_options(CLI::App& command, PassArguments& arguments);
void add_plan_options(CLI::App& command, PlanArguments& arguments);
void add_feed_options(CLI::App& command, FeedArguments& arguments);
// `seconds` that a collective waits.
void add_timeout_option(CLI::App& command, double& seconds);

struct LoadedModel {
  std::filesystem::path path;
  onnx_io::ImportOptions bindings;
  int64_t seed = 0;  // of random operators without one
  ir::Graph graph;   // canonical
  shard::Roles roles;
  std::vector<transforms::AttentionRegion> attention;  // empty when it is to stay unfused
  std::vector<transforms::PassTiming> timings;         // reading the file first
  std::vector<ir::Value> initial;                      // trained initializers that became inputs
};

// Prints what --print-after asks for to stdout, and what --timing asks for to stderr.
LoadedModel load_model(const ModelArguments& arguments, const PassArguments& passes);

// The model, the data files that it names, and those among `others` that are files (a device may be
// a name). Throws Error for what is not an ONNX file.
std::vector<std::filesystem::path> files_read(const std::filesystem::path& model,
                                              const std::vector<std::filesystem::path>& others);

// The symbolic dimension that the sequence is; "" where the model fixes it.
std::string sequence_dimension(const LoadedModel& model);

shard::PlanOptions plan_options(const PlanArguments& arguments);

// The graph must stay where it is as long as the plan is used.
shard::Plan plan_model(const LoadedModel& model, const PlanArguments& arguments);

CLI::Validator at_least_one();
// A whole number from 0 on.
CLI::Validator at_most(int64_t most);
// More than 0, at most a million.
CLI::Validator seconds();

// --step, the number of a training step.
void add_step_option(CLI::App& command, std::optional<int64_t>& step);

// A relative error: more than 0, at most 1.
CLI::Validator tolerance();

// Splits "NAME=VALUE"; `option` is named in the error.
std::pair<std::string, std::string> split_assignment(const std::string& text,
                                                     const std::string& option);
int64_t parse_count(const std::string& text, const std::string& option,
                    const std::string& help = "for example: --dim seq=4096, --sp 4");
std::map<std::string, int64_t> parse_counts(const std::vector<std::string>& assignments,
                                            const std::string& option);

}  // namespace autosp::cli
