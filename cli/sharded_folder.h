// Writing and reading the folder of a sharded model.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "dialects.h"
#include "model_arguments.h"
#include "onnx/manifest.h"
#include "onnx/model.h"
#include "transforms/spmd/program.h"
#include "transforms/training/training_plan.h"

namespace autosp::cli {

// A graph on its way to a file.
struct WrittenGraph {
  ir::Graph graph;
  onnx_io::ExportOptions options;  // but for the data file, which all graphs share
  std::shared_ptr<const ir::GraphSharding> sharding;  // to which the options may point
  // Of the file that was written, with the options it was written by; may be empty.
  std::function<void(const std::filesystem::path&, const onnx_io::ExportOptions&)> check;
};

struct Graphs {
  // As dialect_graph has them.
  std::function<WrittenGraph(Dialect dialect, int64_t rank)> of;
  // The whole graph with ONNX's sharding annotations; empty where it is not to be written.
  std::function<WrittenGraph()> annotated;
  // Whose updates are written too, with the values that parameters begin with; null: not for
  // training.
  const transforms::TrainingPlan* training = nullptr;
};

// `annotate`: ONNX's sharding annotations, in rank graphs and in annotated.onnx. The program must
// outlive the result.
Graphs graphs_of(const transforms::SpmdProgram& program, bool annotate);

// Writes manifest.json and the graphs asked for into `folder`, which appears (or is replaced)
// in one step when all is done; SIGINT, SIGTERM or SIGHUP before that leave nothing (Interruption).
// Weights kept outside the model share blocks with it where the file system can; large ones kept
// inside it go to one file that all ranks share. Throws Error when `folder` holds any file that is
// not of an earlier sharded model, or the model itself.
void write_folder(const LoadedModel& model, const Graphs& graphs, const onnx_io::Manifest& manifest,
                  const std::set<Dialect>& dialects, const std::filesystem::path& folder);

}  // namespace autosp::cli
