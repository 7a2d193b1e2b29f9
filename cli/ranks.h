// Running the ranks of a sharded folder.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "executor/npz.h"
#include "executor/run.h"
#include "onnx/manifest.h"

namespace autosp::cli {

// The graph of one rank, at the length of the manifest. Throws Error when the file is missing (a
// folder with emulated.onnx only) or does not fit the manifest.
std::shared_ptr<const ir::Graph> load_rank(const std::filesystem::path& folder,
                                           const onnx_io::Manifest& manifest, int64_t rank);

// All ranks as threads of this process, each with its feeds.
executor::RunResult run_ranks(const std::filesystem::path& folder,
                              const onnx_io::Manifest& manifest,
                              const std::vector<executor::Arrays>& feeds,
                              const executor::RunOptions& options);
// The same, each with its slice of the global feeds.
executor::RunResult run_ranks(const std::filesystem::path& folder,
                              const onnx_io::Manifest& manifest, const executor::Arrays& feeds,
                              const executor::RunOptions& options);

// "1 rank", "4 ranks".
std::string count_of_ranks(size_t ranks);

// Prints to stderr what of the environment makes runs slow, and what there is to know of how the
// ranks ran, once each.
void print_notices(const std::set<std::string>& notices = {});
void print_notices(const std::vector<executor::RankResult>& ranks);

}  // namespace autosp::cli
