// What is written of a model that was sharded at several lengths: graphs and manifest for all of
// them. Units are those of transforms/open_length; the first length is the one planned for.
#pragma once

#include <vector>

#include "onnx/manifest.h"
#include "sharded_folder.h"
#include "transforms/open_length/join_lengths.h"

namespace autosp::cli {

transforms::OpenGraph join_graphs(const std::vector<int64_t>& units,
                                  const std::vector<ir::Graph>& graphs,
                                  const transforms::OpenLength& open);

// One graph of them, whose dimensions have names and whose attention has bodies for every length.
// Its check reads the file back at each of the lengths, and throws Error unless it is then the
// graph of that length.
WrittenGraph open_graph(std::vector<int64_t> units, std::vector<ir::Graph> graphs,
                        const transforms::OpenLength& open);

// With the lengths that are allowed; `shortest` and `longest` in units, 0: none is known. Throws
// Error where the parts of inputs that ranks take do not grow evenly.
onnx_io::Manifest open_manifest(const std::vector<int64_t>& units,
                                const std::vector<onnx_io::Manifest>& at,
                                const transforms::OpenLength& open, int64_t shortest,
                                int64_t longest);

}  // namespace autosp::cli
