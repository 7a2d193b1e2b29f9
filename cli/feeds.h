// What ranks are fed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "executor/npz.h"
#include "ir/graph.h"
#include "onnx/manifest.h"

namespace autosp::cli {

// The manifest at the length of the sequence that --dim gives (`dims`, NAME=VALUE), else at that of
// the inputs `given`, else at the length that was planned for. Throws Error for a length that the
// graphs do not take, for another dimension, and for graphs of one length that is not the one
// given.
onnx_io::Manifest at_given_length(const onnx_io::Manifest& manifest,
                                  const std::vector<std::string>& dims,
                                  const executor::Arrays* given);

// The same with the inputs of a file, where `feed` names one.
onnx_io::Manifest at_given_length(const onnx_io::Manifest& manifest,
                                  const std::vector<std::string>& dims,
                                  const std::filesystem::path& feed);

// The array as an input of that type takes it: float32 is rounded to bfloat16, which NumPy lacks.
ir::Tensor as_fed(const ir::Tensor& given, ir::DataType wanted);

// The arrays among `given` that the model takes; float32 is rounded where it takes bfloat16, and
// the number of the step is 0 where it is missing. Throws Error listing every input that is missing
// or has another type or shape; `where` names the feed.
executor::Arrays select_feeds(const onnx_io::Manifest& manifest, const executor::Arrays& given,
                              const std::string& where);

// Likewise, and inputs may be missing.
executor::Arrays select_present(const onnx_io::Manifest& manifest, const executor::Arrays& given,
                                const std::string& where);

// Sets the number of the step, which decides random numbers. Throws Error where the model draws
// nothing at random.
void set_step(const onnx_io::Manifest& manifest, int64_t step, executor::Arrays& feeds);

// The arrays, and what else of parameters lies beside the rank graphs: the values that the model
// gave them itself.
executor::Arrays with_initial_parameters(const std::filesystem::path& folder,
                                         executor::Arrays given);

// The part of a whole input, or of all of them, that a rank takes.
ir::Tensor rank_feed(const onnx_io::ManifestInput& input, const ir::Tensor& whole, int64_t rank);
executor::Arrays rank_feeds(const onnx_io::Manifest& manifest, const executor::Arrays& global,
                            int64_t rank);
// The feeds of a rank, of whole parameters, with shards in place of those that ranks share out.
executor::Arrays with_shards(const onnx_io::Manifest& manifest, executor::Arrays feeds,
                             int64_t rank);
// What rank_feeds gives without the parameters that are trained.
executor::Arrays data_feeds(const onnx_io::Manifest& manifest, const executor::Arrays& global,
                            int64_t rank);

// Random inputs that make sense for the graph: weights of trained size, token numbers within their
// vocabulary, masks with padding, labels of which some are ignored. The same seed gives the same.
executor::Arrays generate_feeds(const ir::Graph& graph, const onnx_io::Manifest& manifest,
                                uint64_t seed);

}  // namespace autosp::cli
