// The forms in which `shard` writes graphs, by what runs them (docs/other_runtimes.md).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "transforms/spmd/program.h"

namespace autosp::cli {

enum class Dialect : uint8_t {
  kAutosp,       // a graph per rank, collectives of the autosp domain
  kOnnxRuntime,  // a graph per rank, collectives of com.microsoft
  kTensorRt,     // a graph per rank, collectives as DistCollective
  kStandard,     // every rank in one graph of standard operators
};

// As --dialect has them.
const std::vector<std::string>& dialect_names();
Dialect parse_dialect(const std::string& name);  // one of these

// The whole graph with ONNX's sharding annotations, beside those of the dialects.
inline constexpr const char* kAnnotatedFile = "annotated.onnx";

// Of a sharded model's folder: "rank_3.onnx", "rank_3.ort.onnx"; "emulated.onnx" for all ranks.
std::string graph_file(Dialect dialect, int64_t rank);
// Whether a file's name is one of these.
bool is_graph_file(const std::string& name);

// The graph of one rank as the bundled executor runs it, which `plan` predicts from.
ir::Graph rank_graph(const transforms::SpmdProgram& program, int64_t rank);

// One rank's graph, or that of all, as it is written but for its signature. Throws Error for what
// the dialect cannot say. `decided` is the program at the length by whose sizes decisions are made,
// where that is another one.
ir::Graph dialect_graph(const transforms::SpmdProgram& program, Dialect dialect, int64_t rank,
                        const transforms::SpmdProgram* decided = nullptr);

// Its operators of the autosp domain as functions of standard ones.
std::optional<ir::Graph> own_operator_body(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::cli
