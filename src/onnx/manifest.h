// manifest.json of a sharded model, as plain structs. The schema, with every field's meaning, is
// manifest.proto.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ir/graph.h"

namespace autosp::onnx_io {

inline constexpr int kManifestFormat = 1;
inline constexpr const char* kManifestFile = "manifest.json";

struct ManifestDim {
  std::string name;
  int64_t value = 0;
};

struct ManifestAxis {
  std::string name;
  int64_t size = 1;
};

struct ManifestRank {
  int64_t rank = 0;
  std::string file;
  std::vector<int64_t> coordinates;
};

struct ManifestSlice {
  std::vector<int64_t> begin;
  ir::Shape extent;
};

enum class InputRole : uint8_t { kData, kParameter };
enum class OutputRole : uint8_t { kOther, kLoss, kGradient };
enum class Phase : uint8_t { kForward, kBackward, kRecompute, kUpdate };
enum class Purpose : uint8_t { kReshard, kGradient, kLoss, kParameter };

struct ManifestInput {
  std::string name;
  ir::Type type;  // global
  InputRole role = InputRole::kData;
  std::vector<ManifestSlice> slices;  // by rank; empty: every rank takes all of it
};

struct ManifestOutput {
  std::string name;
  ir::Type type;
  OutputRole role = OutputRole::kOther;
  std::string parameter;
};

struct ManifestCollective {
  std::string node;
  std::string kind;
  std::string value;
  std::vector<std::string> mesh_axes;
  int64_t group_size = 1;
  int64_t bytes_per_rank = 0;
  Phase phase = Phase::kForward;
  Purpose purpose = Purpose::kReshard;
};

struct ManifestTotals {
  int64_t collectives = 0;
  int64_t bytes_per_rank = 0;
  int64_t forward_bytes_per_rank = 0;
  int64_t backward_bytes_per_rank = 0;
};

struct ManifestRecompute {
  std::string policy;
  int64_t operators = 0;
  int64_t kept_bytes = 0;
};

struct ManifestRandom {
  int64_t seed = 0;
  std::string step_input;
};

struct ManifestSetting {
  std::string name;
  double value = 0;
};

struct ManifestBucket {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<int64_t> cuts;
};

struct ManifestBytes {
  int64_t parameters = 0;
  int64_t gradients = 0;
  int64_t optimizer_state = 0;
};

struct ManifestTraining {
  std::string optimizer;
  std::vector<ManifestSetting> settings;
  int64_t zero = 0;
  int64_t accumulate = 1;
  std::vector<std::string> parameters;
  std::vector<int64_t> group;
  std::vector<ManifestBucket> buckets;
  std::vector<ManifestBytes> bytes;  // by rank
  std::string loss_weight;
};

// What a shape or a rank's slice gains for every `multiple` tokens more (manifest.proto).
struct ManifestGrowth {
  std::string name;
  ir::Shape shape;
  std::vector<ManifestSlice> slices;
  std::vector<std::string> formulas;
};

// Lengths in tokens.
struct ManifestOpenLength {
  std::string dim;
  int64_t planned = 0;
  int64_t multiple = 1;
  int64_t minimum = 1;
  int64_t maximum = 0;  // 0: none is known
  std::vector<ManifestGrowth> inputs;
  std::vector<ManifestGrowth> outputs;
};

struct Manifest {
  std::string tool_version;
  std::string model_name;
  int64_t model_bytes = 0;
  std::string model_fingerprint;
  int64_t opset = 0;
  std::vector<ManifestDim> dims;
  std::vector<ManifestAxis> mesh;
  std::vector<ManifestRank> ranks;
  std::vector<ManifestInput> inputs;
  std::vector<ManifestOutput> outputs;
  std::vector<ManifestCollective> collectives;
  std::vector<std::string> warnings;
  ManifestRecompute recompute;
  std::optional<ManifestRandom> random;
  std::optional<ManifestTraining> training;
  std::string plan_hash;
  std::optional<ManifestOpenLength> open_length;  // of graphs for several lengths

  // Sums over `collectives`.
  ManifestTotals totals() const;
};

std::string_view name_of(InputRole role);
std::string_view name_of(OutputRole role);
std::string_view name_of(Phase phase);
std::string_view name_of(Purpose purpose);

// The JSON text; the same manifest gives the same bytes.
std::string to_json(const Manifest& manifest);

// `where` names the text in errors. Throws Error for what is not JSON, lacks or contradicts what
// the schema asks, or has another format.
Manifest parse_manifest(const std::string& json, const std::string& where);

// Of a folder that `shard` wrote. Throws Error also when there is no manifest in it.
Manifest read_manifest(const std::filesystem::path& folder);
// Whether a folder's manifest says that it is ours, even where it cannot be read as a whole.
bool is_manifest(const std::filesystem::path& folder);
// Appears by rename.
void write_manifest(const Manifest& manifest, const std::filesystem::path& folder);

// 64-bit FNV-1a as 16 hexadecimal digits.
std::string fingerprint(std::string_view bytes);

// Fills model_name, model_bytes and model_fingerprint.
void describe_model(const std::filesystem::path& model, Manifest& manifest);

}  // namespace autosp::onnx_io
