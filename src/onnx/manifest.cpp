#include "onnx/manifest.h"

#include <google/protobuf/util/json_util.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <regex>

#include "base/context.h"
#include "base/error.h"
#include "manifest.pb.h"
#include "onnx/atomic_file.h"

namespace autosp::onnx_io {

namespace {

namespace proto = autosp::manifest;

constexpr std::array kDataTypes = {
    ir::DataType::kFloat32,  ir::DataType::kUInt8,   ir::DataType::kInt8,   ir::DataType::kUInt16,
    ir::DataType::kInt16,    ir::DataType::kInt32,   ir::DataType::kInt64,  ir::DataType::kBool,
    ir::DataType::kFloat16,  ir::DataType::kFloat64, ir::DataType::kUInt32, ir::DataType::kUInt64,
    ir::DataType::kBFloat16,
};

int32_t narrow(int64_t value) {
  if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
    throw Error("{} does not fit into the manifest, whose numbers go up to {}", value,
                std::numeric_limits<int32_t>::max())
        .note("extents, ranks and counts of the sharded model are written there")
        .help("use smaller dimensions");
  }
  return static_cast<int32_t>(value);
}

void set(const std::vector<int64_t>& from, google::protobuf::RepeatedField<int32_t>* to) {
  for (int64_t value : from) to->Add(narrow(value));
}

std::vector<int64_t> get(const google::protobuf::RepeatedField<int32_t>& from) {
  return {from.begin(), from.end()};
}

void set(const ManifestSlice& from, proto::Slice* to) {
  set(from.begin, to->mutable_begin());
  set(from.extent, to->mutable_extent());
}

void set(const ManifestGrowth& from, proto::Growth* to) {
  to->set_name(from.name);
  set(from.shape, to->mutable_shape());
  for (const ManifestSlice& slice : from.slices) set(slice, to->add_slices());
  for (const std::string& formula : from.formulas) to->add_formulas(formula);
}

void set(const ManifestOpenLength& from, proto::OpenLength* to) {
  to->set_dim(from.dim);
  to->set_planned(narrow(from.planned));
  to->set_multiple(narrow(from.multiple));
  to->set_minimum(narrow(from.minimum));
  to->set_maximum(narrow(from.maximum));
  for (const ManifestGrowth& growth : from.inputs) set(growth, to->add_inputs());
  for (const ManifestGrowth& growth : from.outputs) set(growth, to->add_outputs());
}

// --- To the message.

void set(const ManifestTraining& from, proto::Training* to) {
  to->set_optimizer(from.optimizer);
  for (const ManifestSetting& setting : from.settings) {
    auto* entry = to->add_settings();
    entry->set_name(setting.name);
    entry->set_value(setting.value);
  }
  to->set_zero(narrow(from.zero));
  to->set_accumulate(narrow(from.accumulate));
  for (const std::string& name : from.parameters) to->add_parameters(name);
  set(from.group, to->mutable_group());
  for (const ManifestBucket& bucket : from.buckets) {
    auto* entry = to->add_buckets();
    entry->set_name(bucket.name);
    for (const std::string& name : bucket.parameters) entry->add_parameters(name);
    for (int64_t cut : bucket.cuts) entry->add_cuts(static_cast<double>(cut));
  }
  for (const ManifestBytes& bytes : from.bytes) {
    auto* entry = to->add_bytes();
    entry->set_parameters(static_cast<double>(bytes.parameters));
    entry->set_gradients(static_cast<double>(bytes.gradients));
    entry->set_optimizer_state(static_cast<double>(bytes.optimizer_state));
  }
  to->set_loss_weight(from.loss_weight);
}

proto::Manifest to_message(const Manifest& manifest) {
  proto::Manifest message;
  message.set_format(kManifestFormat);
  message.set_tool("autosp-onnx");
  message.set_tool_version(manifest.tool_version);
  message.mutable_model()->set_name(manifest.model_name);
  message.mutable_model()->set_bytes(static_cast<double>(manifest.model_bytes));
  message.mutable_model()->set_fingerprint(manifest.model_fingerprint);
  message.mutable_model()->set_opset(narrow(manifest.opset));
  for (const ManifestDim& from : manifest.dims) {
    auto* to = message.add_dims();
    to->set_name(from.name);
    to->set_value(narrow(from.value));
  }
  for (const ManifestAxis& from : manifest.mesh) {
    auto* to = message.add_mesh();
    to->set_name(from.name);
    to->set_size(narrow(from.size));
  }
  for (const ManifestRank& from : manifest.ranks) {
    auto* to = message.add_ranks();
    to->set_rank(narrow(from.rank));
    to->set_file(from.file);
    set(from.coordinates, to->mutable_coordinates());
  }
  for (const ManifestInput& from : manifest.inputs) {
    auto* to = message.add_inputs();
    to->set_name(from.name);
    to->set_dtype(std::string(ir::name_of(from.type.dtype)));
    set(from.type.shape, to->mutable_shape());
    to->set_role(static_cast<proto::Input::Role>(from.role));
    for (const ManifestSlice& slice : from.slices) set(slice, to->add_slices());
  }
  for (const ManifestOutput& from : manifest.outputs) {
    auto* to = message.add_outputs();
    to->set_name(from.name);
    to->set_dtype(std::string(ir::name_of(from.type.dtype)));
    set(from.type.shape, to->mutable_shape());
    to->set_role(static_cast<proto::Output::Role>(from.role));
    to->set_parameter(from.parameter);
  }
  for (size_t k = 0; k < manifest.collectives.size(); ++k) {
    const ManifestCollective& from = manifest.collectives[k];
    auto* to = message.add_collectives();
    to->set_index(narrow(static_cast<int64_t>(k)));
    to->set_node(from.node);
    to->set_kind(from.kind);
    to->set_value(from.value);
    for (const std::string& axis : from.mesh_axes) to->add_mesh_axes(axis);
    to->set_group_size(narrow(from.group_size));
    to->set_bytes_per_rank(static_cast<double>(from.bytes_per_rank));
    to->set_phase(static_cast<proto::Collective::Phase>(from.phase));
    to->set_purpose(static_cast<proto::Collective::Purpose>(from.purpose));
  }
  const ManifestTotals totals = manifest.totals();
  auto* sums = message.mutable_totals();
  sums->set_collectives(narrow(totals.collectives));
  sums->set_bytes_per_rank(static_cast<double>(totals.bytes_per_rank));
  sums->set_forward_bytes_per_rank(static_cast<double>(totals.forward_bytes_per_rank));
  sums->set_backward_bytes_per_rank(static_cast<double>(totals.backward_bytes_per_rank));
  for (const std::string& warning : manifest.warnings) message.add_warnings(warning);
  auto* recompute = message.mutable_recompute();
  recompute->set_policy(manifest.recompute.policy);
  recompute->set_operators(narrow(manifest.recompute.operators));
  recompute->set_kept_bytes(static_cast<double>(manifest.recompute.kept_bytes));
  if (manifest.random) {
    message.mutable_random()->set_seed(static_cast<double>(manifest.random->seed));
    message.mutable_random()->set_step_input(manifest.random->step_input);
  }
  if (manifest.training) set(*manifest.training, message.mutable_training());
  message.set_plan_hash(manifest.plan_hash);
  if (manifest.open_length) set(*manifest.open_length, message.mutable_open_length());
  return message;
}

// --- From the message, checked.

class Reader {
 public:
  Reader(const proto::Manifest& message, const std::string& where)
      : message_(message), where_(where) {}

  Manifest run() {
    if (message_.tool() != "autosp-onnx") fail("its tool is not 'autosp-onnx'");
    if (message_.format() != kManifestFormat) {
      throw Error("{} has format {}; this version reads format {}", where_, message_.format(),
                  kManifestFormat)
          .help("shard the model again with this version of autosp-onnx");
    }
    Manifest manifest;
    manifest.tool_version = message_.tool_version();
    manifest.model_name = message_.model().name();
    manifest.model_bytes = static_cast<int64_t>(message_.model().bytes());
    manifest.model_fingerprint = message_.model().fingerprint();
    manifest.opset = message_.model().opset();
    for (const auto& dim : message_.dims()) manifest.dims.push_back({dim.name(), dim.value()});
    read_mesh(manifest);
    for (const auto& input : message_.inputs()) manifest.inputs.push_back(read(input, manifest));
    for (const auto& output : message_.outputs()) manifest.outputs.push_back(read(output));
    for (const auto& entry : message_.collectives()) manifest.collectives.push_back(read(entry));
    if (manifest.outputs.empty()) fail("it lists no outputs");
    manifest.warnings.assign(message_.warnings().begin(), message_.warnings().end());
    manifest.recompute = {.policy = message_.recompute().policy(),
                          .operators = message_.recompute().operators(),
                          .kept_bytes = static_cast<int64_t>(message_.recompute().kept_bytes())};
    if (message_.has_random()) {
      manifest.random = {.seed = static_cast<int64_t>(message_.random().seed()),
                         .step_input = message_.random().step_input()};
    }
    if (message_.has_training()) manifest.training = read(message_.training(), manifest);
    manifest.plan_hash = message_.plan_hash();
    if (message_.has_open_length()) {
      manifest.open_length = read(message_.open_length());
      check_growth(manifest);
    }
    return manifest;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("{} is not a manifest of a sharded model: {}", where_, what)
        .help("shard the model again");
  }

  void read_mesh(Manifest& manifest) const {
    int64_t size = 1;
    for (const auto& axis : message_.mesh()) {
      if (axis.size() < 1)
        fail(fmt::format("mesh axis '{}' has size {}", axis.name(), axis.size()));
      manifest.mesh.push_back({axis.name(), axis.size()});
      size *= axis.size();
    }
    if (size != message_.ranks_size()) {
      fail(fmt::format("its mesh has {} ranks, but it lists {}", size, message_.ranks_size()));
    }
    for (const auto& rank : message_.ranks()) {
      const auto expected = static_cast<int64_t>(manifest.ranks.size());
      if (rank.rank() != expected) fail(fmt::format("it lacks rank {}", expected));
      if (rank.file().empty() || rank.file().find('/') != std::string::npos) {
        fail(fmt::format("the file of rank {} is '{}'", expected, rank.file()));
      }
      if (rank.coordinates_size() != message_.mesh_size()) {
        fail(fmt::format("rank {} has {} coordinates in a mesh of {} axes", expected,
                         rank.coordinates_size(), message_.mesh_size()));
      }
      manifest.ranks.push_back({rank.rank(), rank.file(), get(rank.coordinates())});
    }
  }

  ir::DataType data_type(const std::string& name, const std::string& value) const {
    for (ir::DataType type : kDataTypes) {
      if (ir::name_of(type) == name) return type;
    }
    fail(fmt::format("'{}' has the unknown element type '{}'", value, name));
  }

  ManifestInput read(const proto::Input& input, const Manifest& manifest) const {
    ManifestInput result{
        .name = input.name(),
        .type = {data_type(input.dtype(), input.name()), get(input.shape())},
        .role = static_cast<InputRole>(input.role()),
        .slices = {},
    };
    if (input.slices_size() != 0 &&
        static_cast<size_t>(input.slices_size()) != manifest.ranks.size()) {
      fail(fmt::format("input '{}' has slices for {} of {} ranks", input.name(),
                       input.slices_size(), manifest.ranks.size()));
    }
    for (const auto& slice : input.slices()) {
      result.slices.push_back({get(slice.begin()), get(slice.extent())});
      if (!fits(result.slices.back(), result.type.shape)) {
        fail(fmt::format("the slice of rank {} is outside input '{}' of shape {}",
                         result.slices.size() - 1, input.name(), ir::to_string(result.type.shape)));
      }
    }
    return result;
  }

  static bool fits(const ManifestSlice& slice, const ir::Shape& shape) {
    if (slice.begin.size() != shape.size() || slice.extent.size() != shape.size()) return false;
    for (size_t k = 0; k < shape.size(); ++k) {
      if (slice.begin[k] < 0 || slice.extent[k] < 0) return false;
      if (slice.begin[k] > shape[k] - slice.extent[k]) return false;
    }
    return true;
  }

  ManifestOutput read(const proto::Output& output) const {
    return {.name = output.name(),
            .type = {data_type(output.dtype(), output.name()), get(output.shape())},
            .role = static_cast<OutputRole>(output.role()),
            .parameter = output.parameter()};
  }

  ManifestTraining read(const proto::Training& entry, const Manifest& manifest) const {
    ManifestTraining training{.optimizer = entry.optimizer(),
                              .settings = {},
                              .zero = entry.zero(),
                              .accumulate = entry.accumulate(),
                              .parameters = {entry.parameters().begin(), entry.parameters().end()},
                              .group = get(entry.group()),
                              .buckets = {},
                              .bytes = {},
                              .loss_weight = entry.loss_weight()};
    const auto whole = [](double value) { return static_cast<int64_t>(value); };
    for (const auto& setting : entry.settings()) {
      training.settings.push_back({setting.name(), setting.value()});
    }
    for (const auto& bucket : entry.buckets()) {
      if (static_cast<size_t>(bucket.cuts_size()) != manifest.ranks.size() + 1) {
        fail(fmt::format("'{}' is cut into {} shards for {} ranks", bucket.name(),
                         bucket.cuts_size() - 1, manifest.ranks.size()));
      }
      ManifestBucket& to = training.buckets.emplace_back();
      to.name = bucket.name();
      to.parameters.assign(bucket.parameters().begin(), bucket.parameters().end());
      for (double cut : bucket.cuts()) to.cuts.push_back(whole(cut));
    }
    for (const auto& bytes : entry.bytes()) {
      training.bytes.push_back(
          {whole(bytes.parameters()), whole(bytes.gradients()), whole(bytes.optimizer_state())});
    }
    return training;
  }

  static ManifestGrowth read(const proto::Growth& growth) {
    ManifestGrowth result{.name = growth.name(),
                          .shape = get(growth.shape()),
                          .slices = {},
                          .formulas = {growth.formulas().begin(), growth.formulas().end()}};
    for (const auto& slice : growth.slices()) {
      result.slices.push_back({get(slice.begin()), get(slice.extent())});
    }
    return result;
  }

  static ManifestOpenLength read(const proto::OpenLength& open) {
    ManifestOpenLength result{.dim = open.dim(),
                              .planned = open.planned(),
                              .multiple = open.multiple(),
                              .minimum = open.minimum(),
                              .maximum = open.maximum(),
                              .inputs = {},
                              .outputs = {}};
    for (const auto& growth : open.inputs()) result.inputs.push_back(read(growth));
    for (const auto& growth : open.outputs()) result.outputs.push_back(read(growth));
    return result;
  }

  // Every growth has the form of what it adds to.
  void check_growth(const Manifest& manifest) const {
    const ManifestOpenLength& open = *manifest.open_length;
    if (open.multiple < 1 || open.minimum < 1 || open.planned % open.multiple != 0) {
      fail(fmt::format("its open length is {}, a multiple of {}, at least {}", open.planned,
                       open.multiple, open.minimum));
    }
    for (const ManifestGrowth& growth : open.inputs) {
      const auto input = std::ranges::find(manifest.inputs, growth.name, &ManifestInput::name);
      const bool fits_input = input != manifest.inputs.end() &&
                              growth.shape.size() == input->type.rank() &&
                              growth.slices.size() == input->slices.size() &&
                              std::ranges::all_of(growth.slices, [&](const ManifestSlice& slice) {
                                return slice.begin.size() == growth.shape.size() &&
                                       slice.extent.size() == growth.shape.size();
                              });
      if (!fits_input) fail(fmt::format("the growth of '{}' is not that of an input", growth.name));
    }
    for (const ManifestGrowth& growth : open.outputs) {
      const auto output = std::ranges::find(manifest.outputs, growth.name, &ManifestOutput::name);
      if (output == manifest.outputs.end() || growth.shape.size() != output->type.rank()) {
        fail(fmt::format("the growth of '{}' is not that of an output", growth.name));
      }
    }
  }

  static ManifestCollective read(const proto::Collective& entry) {
    return {.node = entry.node(),
            .kind = entry.kind(),
            .value = entry.value(),
            .mesh_axes = {entry.mesh_axes().begin(), entry.mesh_axes().end()},
            .group_size = entry.group_size(),
            .bytes_per_rank = static_cast<int64_t>(entry.bytes_per_rank()),
            .phase = static_cast<Phase>(entry.phase()),
            .purpose = static_cast<Purpose>(entry.purpose())};
  }

  const proto::Manifest& message_;
  const std::string& where_;
};

std::string read_bytes(const std::filesystem::path& path) {
  std::error_code code;
  if (std::filesystem::is_directory(path, code)) {
    throw Error("'{}' is a folder, not a file", path.string());
  }
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw Error("cannot read '{}': {}", path.string(), std::strerror(errno));
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

}  // namespace

ManifestTotals Manifest::totals() const {
  ManifestTotals totals;
  for (const ManifestCollective& entry : collectives) {
    ++totals.collectives;
    totals.bytes_per_rank += entry.bytes_per_rank;
    if (entry.phase == Phase::kUpdate) continue;
    (entry.phase == Phase::kForward ? totals.forward_bytes_per_rank
                                    : totals.backward_bytes_per_rank) += entry.bytes_per_rank;
  }
  return totals;
}

std::string_view name_of(InputRole role) {
  return role == InputRole::kParameter ? "parameter" : "data";
}

std::string_view name_of(OutputRole role) {
  if (role == OutputRole::kLoss) return "loss";
  return role == OutputRole::kGradient ? "gradient" : "other";
}

std::string_view name_of(Phase phase) {
  switch (phase) {
    case Phase::kForward:
      return "forward";
    case Phase::kBackward:
      return "backward";
    case Phase::kRecompute:
      return "recompute";
    case Phase::kUpdate:
      return "update";
  }
  return "";
}

std::string_view name_of(Purpose purpose) {
  if (purpose == Purpose::kLoss) return "loss";
  if (purpose == Purpose::kParameter) return "parameter";
  return purpose == Purpose::kGradient ? "gradient" : "reshard";
}

std::string to_json(const Manifest& manifest) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status =
      google::protobuf::util::MessageToJsonString(to_message(manifest), &json, options);
  AUTOSP_CHECK(status.ok(), "{}", status.ToString());
  return json;
}

Manifest parse_manifest(const std::string& json, const std::string& where) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  proto::Manifest message;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &message, options);
  if (!status.ok()) {
    // The first of several lines, which go on with an excerpt.
    const std::string reason(status.message());
    throw Error("{} is not a manifest of a sharded model: {}", where,
                reason.substr(0, reason.find('\n')))
        .help("shard the model again");
  }
  return Reader(message, where).run();
}

Manifest read_manifest(const std::filesystem::path& folder) {
  const auto path = folder / kManifestFile;
  std::error_code code;
  if (!std::filesystem::is_regular_file(path, code)) {
    throw Error("there is no {} in '{}'", kManifestFile, folder.string())
        .note("it says how a folder of rank graphs belongs together")
        .help("give the folder that 'autosp-onnx shard MODEL -o FOLDER' wrote");
  }
  return with_context(
      "it says how a folder of rank graphs belongs together", "shard the model again",
      [&] { return parse_manifest(read_bytes(path), fmt::format("'{}'", path.string())); });
}

bool is_manifest(const std::filesystem::path& folder) {
  std::ifstream stream(folder / kManifestFile, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  static const std::regex kTool(R"(^\s*\{\s*"format":\s*\d+,\s*"tool":\s*"autosp-onnx")");
  return std::regex_search(text.substr(0, 200), kTool);
}

void write_manifest(const Manifest& manifest, const std::filesystem::path& folder) {
  write_file(folder / kManifestFile, to_json(manifest));
}

std::string fingerprint(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char byte : bytes) {
    hash ^= static_cast<unsigned char>(byte);
    hash *= 0x100000001b3;
  }
  return fmt::format("{:016x}", hash);
}

void describe_model(const std::filesystem::path& model, Manifest& manifest) {
  const std::string bytes =
      with_context("it is given as the model", "give the path of an .onnx file that you may read",
                   [&] { return read_bytes(model); });
  manifest.model_name = model.filename().string();
  manifest.model_bytes = static_cast<int64_t>(bytes.size());
  manifest.model_fingerprint = fingerprint(bytes);
}

}  // namespace autosp::onnx_io
