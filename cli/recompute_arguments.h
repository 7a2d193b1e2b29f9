// --recompute, and the program it leads to.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "onnx/manifest.h"
#include "transforms/spmd/program.h"

namespace autosp::cli {

struct RecomputeArguments {
  std::string policy;  // empty: mincut, or none for a model without a loss
};

void add_recompute_options(CLI::App& command, RecomputeArguments& arguments);

struct RecomputedProgram {
  transforms::SpmdProgram program;
  onnx_io::ManifestRecompute summary;
};

RecomputedProgram with_recompute(const transforms::SpmdProgram& program,
                                 const RecomputeArguments& arguments);

}  // namespace autosp::cli
