// What `shard` tells about its result.
#pragma once

#include "model_arguments.h"
#include "onnx/manifest.h"
#include "transforms/spmd/program.h"

namespace autosp::cli {

// Mesh, slices of inputs, roles of outputs, collectives in order, warnings, and the hash of the
// plan, by which files of one sharding know each other.
onnx_io::Manifest make_manifest(const LoadedModel& model, const transforms::SpmdProgram& program);

}  // namespace autosp::cli
