#include "sharded_folder.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include "base/error.h"
#include "executor/memory.h"
#include "executor/npz.h"
#include "interruption.h"
#include "onnx/model.h"
#include "pending_folder.h"
#include "signature.h"
#include "training/arguments.h"
#include "transforms/spmd/describe_sharding.h"
#include "transforms/training/emit_update.h"

namespace autosp::cli {

namespace {

namespace fs = std::filesystem;
using onnx_io::Manifest;
using transforms::SpmdProgram;

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

void write_folder(const LoadedModel& model, const Graphs& graphs, const Manifest& manifest,
                  const std::set<Dialect>& dialects, const fs::path& folder) {
  if (folder.empty()) {
    throw Error("-o names no folder: it is empty")
        .note("the sharded model is a folder of files")
        .help("give the name of a folder, for example -o out");
  }
  const fs::path target = (folder / "").lexically_normal().parent_path();
  check_target(folder, target, model.path);
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
