// Writing and reading the folder of a sharded model.
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "dialects.h"
#include "model_arguments.h"
#include "onnx/manifest.h"
#include "transforms/spmd/program.h"

namespace autosp::cli {

struct FolderContents {
  std::set<Dialect> dialects;
  bool annotate = false;  // ONNX's sharding annotations: in rank graphs, and in annotated.onnx
};

// Everything `shard` tells about its result.
onnx_io::Manifest make_manifest(const LoadedModel& model, const transforms::SpmdProgram& program);

// Writes manifest.json and the graphs asked for into `folder`, which appears (or is replaced)
// in one step when all is done; SIGINT, SIGTERM or SIGHUP before that leave nothing (Interruption).
// Weights kept outside the model share blocks with it where the file system can; large ones kept
// inside it go to one file that all ranks share. Throws Error when `folder` holds any file that is
// not of an earlier sharded model, or the model itself.
void write_folder(const LoadedModel& model, const transforms::SpmdProgram& program,
                  const onnx_io::Manifest& manifest, const FolderContents& contents,
                  const std::filesystem::path& folder);

}  // namespace autosp::cli
