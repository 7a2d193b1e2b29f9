// --recompute and --tile, and the program they lead to.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "cost/device.h"
#include "onnx/manifest.h"
#include "transforms/recompute/recompute.h"
#include "transforms/spmd/program.h"
#include "transforms/tile/tile.h"

namespace autosp::cli {

struct RecomputeArguments {
  std::string policy;  // empty: mincut, or none for a model without a loss
  std::string tile = "auto";
};

void add_recompute_options(CLI::App& command, RecomputeArguments& arguments);

// The bytes of budget=BYTES; nothing under another policy.
std::optional<int64_t> budget_of(const RecomputeArguments& arguments);

struct RecomputedProgram {
  transforms::SpmdProgram program;
  onnx_io::ManifestRecompute summary;
  // What was decided.
  transforms::RecomputePlan recompute;        // without instructions: nothing is computed again
  std::optional<transforms::TilePlan> tiles;  // nothing: off
};

// `device` prices what is executed again under a budget. `limit` is what "auto" fits into, in bytes
// of planned_peak_bytes.
RecomputedProgram with_recompute(const transforms::SpmdProgram& program,
                                 const RecomputeArguments& arguments, const cost::Device& device,
                                 int64_t limit);

// The same decisions for the same model at another length.
transforms::SpmdProgram with_recompute_like(const transforms::SpmdProgram& program,
                                            const RecomputedProgram& like);

// What a rank's results and scratch memory may take when all ranks run on this machine.
int64_t memory_of_this_machine(const transforms::SpmdProgram& program);

// Bytes of parameters and inputs on one rank, which are outside the planned peak.
int64_t fed_bytes(const transforms::SpmdProgram& program);

}  // namespace autosp::cli
