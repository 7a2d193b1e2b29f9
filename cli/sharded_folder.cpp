#include "sharded_folder.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "executor/memory.h"
#include "executor/npz.h"
#include "interruption.h"
#include "ir/operator_traits.h"
#include "onnx/model.h"
#include "signature.h"
#include "training/arguments.h"
#include "transforms/ring_attention/ring.h"
#include "transforms/spmd/describe_sharding.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/geometry.h"
#include "transforms/spmd/tile_loop.h"
#include "transforms/training/emit_update.h"

namespace autosp::cli {

namespace {

namespace fs = std::filesystem;
using onnx_io::Manifest;
using transforms::SpmdProgram;

std::vector<onnx_io::ManifestSlice> slices_of(const SpmdProgram& program, size_t input) {
  const transforms::Placed& placed = program.at(program.inputs[input]);
  std::vector<onnx_io::ManifestSlice> slices;
  bool whole = true;
  for (int64_t rank = 0; rank < program.plan->mesh.size(); ++rank) {
    onnx_io::ManifestSlice slice;
    for (const shard::Interval& range : transforms::input_slice(program, placed, rank)) {
      slice.begin.push_back(range.begin);
      slice.extent.push_back(range.extent());
    }
    whole = whole && slice.extent == program.graph().shape(placed.value);
    slices.push_back(std::move(slice));
  }
  if (whole) slices.clear();
  return slices;
}

std::string plan_hash(const SpmdProgram& program,
                      const std::optional<onnx_io::ManifestRandom>& random) {
  const shard::Mesh& mesh = program.plan->mesh;
  std::string text = mesh.to_string();
  if (random) text += fmt::format("\nseed {}", random->seed);
  for (const transforms::Placed& placed : program.placed) {
    text += fmt::format("\n{} {}", program.graph().name_of(placed.value),
                        shard::to_string(placed.layout, mesh));
  }
  for (const auto& record : transforms::list_collectives(program)) {
    text += fmt::format("\n{} {}", record.node, record.bytes_per_rank);
  }
  for (const transforms::Instruction& instruction : program.instructions) {
    if (transforms::phase_of(instruction) != transforms::Phase::kRecompute) continue;
    for (transforms::PlacedId id : transforms::results_of(instruction)) {
      text += fmt::format("\n{}", program.graph().name_of(program.at(id).value));
    }
  }
  for (const transforms::TileLoop& loop : program.tile_loops) {
    text += fmt::format("\n{} from {}: {} tiles", loop.count, loop.first, loop.stretch->tiles);
  }
  if (program.exchange != nullptr) {
    const transforms::TrainingPlan& training = program.exchange->plan;
    const transforms::OptimizerSettings& o = training.optimizer;
    text += fmt::format("\n{} {} {} {} {} {} {} {} {}", o.name, o.momentum, o.beta1, o.beta2,
                        o.epsilon, o.weight_decay, o.clip_norm, training.zero, training.accumulate);
  }
  return onnx_io::fingerprint(text);
}

void add_outputs(const SpmdProgram& program, Manifest& manifest) {
  const ir::Graph& graph = program.graph();
  const shard::Roles& roles = program.plan->roles;
  for (size_t k = 0; k < graph.outputs().size(); ++k) {
    onnx_io::ManifestOutput output{.name = graph.outputs()[k].name,
                                   .type = graph.type(graph.outputs()[k].value),
                                   .role = onnx_io::OutputRole::kOther,
                                   .parameter = ""};
    if (roles.loss == k) output.role = onnx_io::OutputRole::kLoss;
    const auto gradient = std::ranges::find(roles.gradients, k, &shard::Gradient::output);
    if (gradient != roles.gradients.end()) {
      output.role = onnx_io::OutputRole::kGradient;
      output.parameter = gradient->parameter;
    }
    manifest.outputs.push_back(std::move(output));
  }
}

onnx_io::Phase in_manifest(transforms::Phase phase) {
  switch (phase) {
    case transforms::Phase::kForward:
      return onnx_io::Phase::kForward;
    case transforms::Phase::kBackward:
      return onnx_io::Phase::kBackward;
    case transforms::Phase::kRecompute:
      return onnx_io::Phase::kRecompute;
  }
  internal_error(__FILE__, __LINE__, fmt::format("phase {}", static_cast<int>(phase)));
}

onnx_io::Purpose in_manifest(transforms::Purpose purpose) {
  switch (purpose) {
    case transforms::Purpose::kReshard:
      return onnx_io::Purpose::kReshard;
    case transforms::Purpose::kGradient:
      return onnx_io::Purpose::kGradient;
    case transforms::Purpose::kLoss:
      return onnx_io::Purpose::kLoss;
    case transforms::Purpose::kParameter:
      return onnx_io::Purpose::kParameter;
  }
  internal_error(__FILE__, __LINE__, fmt::format("purpose {}", static_cast<int>(purpose)));
}

void add_collectives(const SpmdProgram& program, Manifest& manifest) {
  for (const auto& record : transforms::list_collectives(program)) {
    manifest.collectives.push_back({.node = record.node,
                                    .kind = std::string(transforms::name_of(record.kind)),
                                    .value = record.value,
                                    .mesh_axes = record.mesh_axes,
                                    .group_size = record.group_size,
                                    .bytes_per_rank = record.bytes_per_rank,
                                    .phase = in_manifest(record.phase),
                                    .purpose = in_manifest(record.purpose)});
  }
}

// Absent where the model draws nothing at random.
std::optional<onnx_io::ManifestRandom> draws_of(const LoadedModel& model) {
  const auto draws = [](const ir::Node& node) {
    return ir::is_draw(node) || ir::drops_weights(node);
  };
  if (std::ranges::none_of(model.graph.nodes(), draws)) return std::nullopt;
  const auto step = transforms::find_step_input(model.graph);
  return onnx_io::ManifestRandom{.seed = model.seed,
                                 .step_input = step ? model.graph.name_of(*step) : ""};
}

Error not_ours(const fs::path& folder) {
  return Error("'{}' exists and is not a sharded model", folder.string())
      .help("give another folder with -o, or empty this one");
}

// The files in `folder`, relative to it. Links are files, wherever they lead.
std::set<fs::path> files_in(const fs::path& folder) {
  std::set<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_symlink() || !entry.is_directory()) {
      files.insert(entry.path().lexically_relative(folder));
    }
  }
  return files;
}

// "optimizer_rank_12.onnx", "accumulate_rank_12.onnx", and what parameters begin with.
bool is_training_file(const std::string& name) {
  if (name == kInitialFile) return true;
  return std::ranges::any_of(std::array{"optimizer_", "accumulate_"}, [&](std::string_view begin) {
    return name.starts_with(begin) && name.substr(begin.size()).starts_with("rank_") &&
           is_graph_file(name.substr(begin.size()));
  });
}

// An earlier result may be replaced: a folder in which every file is one that `shard` writes.
// Anything else is not ours to remove.
void check_replaceable(const fs::path& folder) {
  if (!fs::exists(fs::symlink_status(folder))) return;
  if (!fs::is_directory(folder)) {
    throw Error("'{}' is a file", folder.string())
        .note("the sharded model is a folder of files")
        .help("give the name of a folder with -o");
  }
  if (!fs::exists(folder / onnx_io::kManifestFile)) {
    // One file is enough: this may be a large folder that was given by mistake.
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.is_directory() && !entry.is_symlink()) continue;
      throw not_ours(folder).note(fmt::format("it has no {}, but '{}'", onnx_io::kManifestFile,
                                              entry.path().lexically_relative(folder).string()));
    }
    return;
  }
  std::set<fs::path> files = files_in(folder);
  std::set<fs::path> graphs = {kAnnotatedFile};
  try {
    for (const auto& rank : onnx_io::read_manifest(folder).ranks) {
      graphs.insert(rank.file);
      for (const std::string& dialect : dialect_names()) {
        graphs.insert(graph_file(parse_dialect(dialect), rank.rank));
      }
    }
  } catch (const Error& error) {
    if (!onnx_io::is_manifest(folder)) throw not_ours(folder).note(error.message());
    // Of another version, or damaged: its graphs go by their names.
    for (const fs::path& file : files) {
      if (is_graph_file(file.string())) graphs.insert(file);
    }
  }
  files.erase(onnx_io::kManifestFile);
  std::erase_if(files, [](const fs::path& file) { return is_training_file(file.string()); });
  std::set<fs::path> present;
  for (const fs::path& graph : graphs) {
    if (files.erase(graph) > 0) present.insert(graph);
  }
  // What is left must be data of these graphs, which takes reading them.
  for (auto graph = present.begin(); graph != present.end() && !files.empty(); ++graph) {
    for (const std::string& location : onnx_io::data_locations(folder / *graph)) {
      files.erase(fs::path(location).lexically_normal());
    }
  }
  if (!files.empty()) {
    throw not_ours(folder).note(
        fmt::format("'{}' is no file of a sharded model", files.begin()->string()));
  }
}

// The folder that a user is in, or one around it, cannot change places with a new one.
void check_not_around(const fs::path& given, const fs::path& target) {
  const fs::path here = fs::current_path();
  const fs::path at = fs::weakly_canonical(target.empty() ? here : fs::absolute(target));
  const fs::path relative = here.lexically_relative(at);
  if (relative.empty() || *relative.begin() == "..") return;
  throw Error("-o '{}' is the folder that this runs in, or one around it", given.string())
      .note("what a folder holds is replaced together with it, when the new graphs are complete")
      .help("give the name of a folder in it, for example -o out");
}

// A model whose files lie in `folder` would be removed with what the folder held before.
void check_outside(const fs::path& model, const fs::path& folder) {
  const fs::path base = fs::weakly_canonical(folder);
  std::vector<fs::path> files = {model};
  for (const std::string& location : onnx_io::data_locations(model)) {
    files.push_back(model.parent_path() / location);
  }
  for (const fs::path& file : files) {
    // A link that lies in the folder is lost with it, and so is a file that a link leads to there.
    for (const fs::path& at : {fs::absolute(file).lexically_normal(), fs::weakly_canonical(file)}) {
      const fs::path relative = at.lexically_relative(base);
      if (relative.empty() || *relative.begin() == "..") continue;
      throw Error("'{}', which the model is read from, lies in '{}', which is to be written",
                  file.string(), folder.string())
          .note("what the folder holds is replaced when the new graphs are complete")
          .help("give another folder with -o");
    }
  }
}

// A folder beside the final one, removed again unless it takes its place.
class PendingFolder {
 public:
  explicit PendingFolder(fs::path target) : target_(std::move(target)) {
    if (target_.has_parent_path()) {
      std::error_code code;
      fs::create_directories(target_.parent_path(), code);
      if (code || !fs::is_directory(target_.parent_path(), code)) {
        throw Error("'{}' cannot be made: {}", target_.parent_path().string(),
                    code ? code.message() : "it is not a folder")
            .note(fmt::format("'{}' is to be written there", target_.filename().string()))
            .help("give a folder with -o whose parents are folders that you may write to");
      }
    }
    std::string pattern = target_.string() + ".XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) {
      throw Error("cannot write beside '{}': {}", target_.string(), std::strerror(errno))
          .note("the new graphs are made in a folder beside it, which then takes its place")
          .help("give a folder with -o in a place that you may write to");
    }
    path_ = pattern;
    fs::permissions(path_, fs::perms(0755));
  }
  ~PendingFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  PendingFolder(const PendingFolder&) = delete;
  PendingFolder& operator=(const PendingFolder&) = delete;

  const fs::path& path() const { return path_; }

  void commit() {
    const fs::path old = path_.string() + ".old";
    const bool replaces = fs::exists(target_);
    // Where the system can, both change places: there always is a complete folder.
    if (replaces &&
        ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0) {
      return;  // what was there before is removed with this object
    }
    std::error_code code;
    if (replaces) fs::rename(target_, old, code);
    const bool moved = replaces && !code;
    if (!code) fs::rename(path_, target_, code);
    if (code) {
      std::error_code ignored;
      if (moved) fs::rename(old, target_, ignored);
      throw Error("'{}' cannot be put in place: {}", target_.string(), code.message())
          .note("the graphs were complete, in a folder beside it, and are removed again")
          .help("check that the folder around it is writable");
    }
    if (replaces) fs::remove_all(old);
  }

 private:
  fs::path target_;
  fs::path path_;
};

// Parameters that the model holds itself, for all ranks to share.
onnx_io::DataFile own_parameters(const LoadedModel& model) {
  constexpr int64_t kSharedBytes = 4096;  // smaller ones are not worth a page
  std::string location = "parameters.bin";
  const auto taken = [&](const ir::Value& value) {
    return value.kind == ir::ValueKind::kExternal && value.external.location == location;
  };
  while (std::ranges::any_of(model.graph.values(), taken)) location.insert(0, "own_");
  onnx_io::DataFile data(location);
  for (size_t v = 0; v < model.graph.values().size(); ++v) {
    const ir::Value& value = model.graph.values()[v];
    if (value.kind != ir::ValueKind::kConstant || !model.roles.is_parameter[v]) continue;
    if (value.type.num_bytes() >= kSharedBytes) data.add(value.name, value.constant);
  }
  return data;
}

// A copy that shares its blocks with the original, where the file system can (btrfs, XFS).
bool clone_file(const fs::path& from, const fs::path& to) {
  const int source = ::open(from.c_str(), O_RDONLY | O_CLOEXEC);
  if (source < 0) return false;
  const int target = ::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  const bool cloned = target >= 0 && ::ioctl(target, FICLONE, source) == 0;
  if (target >= 0) ::close(target);
  ::close(source);
  std::error_code ignored;
  if (!cloned) fs::remove(to, ignored);
  return cloned;
}

// With stops between the pieces, where the user may interrupt it.
void copy_in_pieces(const fs::path& from, const fs::path& to) {
  constexpr uintmax_t kPiece = uintmax_t{64} << 20;
  std::ifstream source(from, std::ios::binary);
  std::ofstream target(to, std::ios::binary);
  std::vector<char> piece(static_cast<size_t>(std::min(kPiece, fs::file_size(from))));
  for (uintmax_t left = fs::file_size(from); left > 0; left -= piece.size()) {
    HeldSignals::check();
    piece.resize(static_cast<size_t>(std::min<uintmax_t>(piece.size(), left)));
    source.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    target.write(piece.data(), static_cast<std::streamsize>(piece.size()));
    if (!source || !target) break;
  }
  target.flush();
  if (source && target) return;
  throw fs::filesystem_error("copy", source ? to : from,
                             std::error_code(errno, std::generic_category()));
}

// Makes the data files that a graph refers to available beside it. ONNX's checker and runtimes
// refuse data that is a link of any kind, or outside the graph's folder.
void place_external_data(const ir::Graph& graph, const fs::path& from, const fs::path& to) {
  std::set<std::string> locations;
  for (const ir::Value& value : graph.values()) {
    if (value.kind == ir::ValueKind::kExternal) locations.insert(value.external.location);
  }
  for (const std::string& location : locations) {
    const fs::path target = to / location;
    HeldSignals::check();
    fs::create_directories(target.parent_path());
    const fs::path source = fs::canonical(from / location);
    if (!clone_file(source, target)) copy_in_pieces(source, target);
  }
}

// The update of every rank, and the values that parameters begin with.
void write_training(const LoadedModel& model, const transforms::TrainingPlan& plan,
                    const Manifest& manifest, const fs::path& folder) {
  const auto write = [&](ir::Graph graph, int64_t rank, const std::string& file) {
    graph.opset = model.graph.opset;
    sign(graph, manifest, std::to_string(rank));
    onnx_io::export_model(graph, folder / file);
  };
  for (int64_t rank = 0; rank < plan.ranks; ++rank) {
    HeldSignals::check();
    write(transforms::emit_update(plan, rank), rank, update_file(rank));
    if (plan.accumulate == 1) continue;
    write(transforms::emit_accumulate(plan, rank), rank, accumulate_file(rank));
  }
  executor::MappedFiles files(model.path.parent_path());
  executor::Arrays initial;
  for (const ir::Value& value : model.initial) {
    initial[value.name] =
        value.kind == ir::ValueKind::kConstant
            ? value.constant
            : ir::Tensor(value.type,
                         {files.data(value), static_cast<size_t>(value.type.num_bytes())});
  }
  if (!initial.empty()) executor::write_npz(folder / kInitialFile, initial);
}

}  // namespace

Graphs graphs_of(const SpmdProgram& program, bool annotate) {
  const auto sharding_of = [&](transforms::AnnotatedGraph kind) {
    return annotate ? std::make_shared<const ir::GraphSharding>(describe_sharding(program, kind))
                    : nullptr;
  };
  const auto written = [](ir::Graph graph, std::shared_ptr<const ir::GraphSharding> sharding) {
    WrittenGraph result{.graph = std::move(graph),
                        .options = {.function_body = own_operator_body, .sharding = sharding.get()},
                        .sharding = std::move(sharding),
                        .check = {}};
    return result;
  };
  Graphs graphs;
  if (program.exchange != nullptr) graphs.training = &program.exchange->plan;
  graphs.of = [&program, written, sharding = sharding_of(transforms::AnnotatedGraph::kRank)](
                  Dialect dialect, int64_t rank) {
    return written(dialect_graph(program, dialect, rank),
                   dialect == Dialect::kStandard ? nullptr : sharding);
  };
  if (annotate) {
    graphs.annotated = [&program, written,
                        sharding = sharding_of(transforms::AnnotatedGraph::kWhole)] {
      return written(program.graph(), sharding);
    };
  }
  return graphs;
}

Manifest make_manifest(const LoadedModel& model, const SpmdProgram& program) {
  const shard::Plan& plan = *program.plan;
  const ir::Graph& graph = program.graph();
  Manifest manifest;
  manifest.tool_version = AUTOSP_VERSION;
  onnx_io::describe_model(model.path, manifest);
  manifest.opset = graph.opset;
  for (const auto& [name, value] : model.bindings.dims) manifest.dims.push_back({name, value});
  for (const shard::MeshAxis& axis : plan.mesh.axes()) {
    manifest.mesh.push_back({axis.name, axis.size});
  }
  for (int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    manifest.ranks.push_back(
        {rank, graph_file(Dialect::kAutosp, rank), plan.mesh.coordinates(rank)});
  }
  for (size_t k = 0; k < graph.inputs().size(); ++k) {
    const ValueId input = graph.inputs()[k];
    manifest.inputs.push_back({.name = graph.name_of(input),
                               .type = graph.type(input),
                               .role = plan.roles.is_parameter[input.index()]
                                           ? onnx_io::InputRole::kParameter
                                           : onnx_io::InputRole::kData,
                               .slices = slices_of(program, k)});
  }
  add_outputs(program, manifest);
  add_collectives(program, manifest);
  for (const shard::GatheredOperator& entry : plan.gathered) {
    manifest.warnings.push_back(fmt::format(
        "node '{}' is gathered over {} ({} per rank): {}", graph.describe(graph.node(entry.node)),
        entry.axis, format_bytes(static_cast<double>(entry.bytes)), entry.reason));
  }
  if (plan.ring_asked && !plan.has_ring() && plan.ring_refusals.empty()) {
    const bool has_axis = plan.axis_named("r") != plan.mesh.num_axes();
    manifest.warnings.push_back(
        fmt::format("there is no ring: {}", has_axis ? "no attention is one operator ('inspect')"
                                                     : "the mesh has no axis r (--sp-mesh r=N)"));
  }
  for (const shard::RingRefusal& entry : plan.ring_refusals) {
    manifest.warnings.push_back(
        fmt::format("node '{}' has no ring, its keys and values are gathered: {}",
                    graph.describe(graph.node(entry.node)), entry.reason));
  }
  if (plan.zigzag_asked && plan.has_ring()) {
    const transforms::ZigzagUse use = transforms::zigzag_use(program);
    if (use.zigzag == 0) {
      manifest.warnings.push_back(
          fmt::format("no attention is in zigzag order: {}", fmt::join(use.why_in_blocks, "; ")));
    }
  }
  manifest.random = draws_of(model);
  describe_training(program, manifest);
  manifest.plan_hash = plan_hash(program, manifest.random);
  return manifest;
}

void write_folder(const LoadedModel& model, const Graphs& graphs, const Manifest& manifest,
                  const std::set<Dialect>& dialects, const fs::path& folder) {
  if (folder.empty()) {
    throw Error("-o names no folder: it is empty")
        .note("the sharded model is a folder of files")
        .help("give the name of a folder, for example -o out");
  }
  const fs::path target = (folder / "").lexically_normal().parent_path();
  check_not_around(folder, target);
  check_outside(model.path, target);
  check_replaceable(target);
  const HeldSignals signals;
  PendingFolder pending(target);
  place_external_data(model.graph, model.path.parent_path(), pending.path());
  const onnx_io::DataFile data = own_parameters(model);
  if (!data.empty()) data.write(pending.path());
  const auto write = [&](WrittenGraph written, const std::string& signed_as,
                         const std::string& file) {
    sign(written.graph, manifest, signed_as);
    written.options.data = &data;
    onnx_io::export_model(written.graph, pending.path() / file, written.options);
    if (written.check) written.check(pending.path() / file, written.options);
    HeldSignals::check();
  };
  HeldSignals::check();
  if (graphs.training != nullptr) write_training(model, *graphs.training, manifest, pending.path());
  if (dialects.contains(Dialect::kStandard)) {
    write(graphs.of(Dialect::kStandard, 0), kAllRanks, graph_file(Dialect::kStandard, 0));
  }
  if (graphs.annotated) write(graphs.annotated(), "", kAnnotatedFile);
  for (const Dialect dialect : dialects) {
    if (dialect == Dialect::kStandard) continue;
    for (const auto& rank : manifest.ranks) {
      write(graphs.of(dialect, rank.rank), std::to_string(rank.rank),
            graph_file(dialect, rank.rank));
    }
  }
  onnx_io::write_manifest(manifest, pending.path());
  HeldSignals::check();
  check_replaceable(target);  // again: writing takes long, and somebody may have put a file there
  pending.commit();
}

}  // namespace autosp::cli
