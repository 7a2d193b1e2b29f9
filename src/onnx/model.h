// The door between ONNX files and ir::Graph: the only place that sees protobuf.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "ir/graph.h"
#include "ir/sharding.h"
#include "onnx/data_file.h"

namespace autosp::onnx_io {

struct ImportOptions {
  // Values of symbolic dimensions, by name. Every symbolic dimension must be bound here or follow
  // from `input_shapes`.
  std::map<std::string, int64_t> dims;
  // Actual shapes of inputs, by name: binds the symbolic dimensions they mention.
  std::map<std::string, ir::Shape> input_shapes;
  // Initializers that are trained, besides those whose gradient's name says so.
  std::unordered_set<std::string> parameters;
};

// Reads a model: checks it, inlines functions (the model's own, except those that stand for this
// project's operators, and the standard operators for which this project has no rule but ONNX has a
// function body), binds symbolic dimensions, brings
// operators to normal form (see ir/graph.h) and infers every type. Initializers with external data
// are referenced, never read.
//
// Throws Error for: not an ONNX file, truncated, unbound symbolic dimensions, external data missing
// or outside the model's folder, unknown operators, cycles, control flow, unsupported types.
ir::Graph import_model(const std::filesystem::path& path, const ImportOptions& options = {});

// The symbolic dimensions of a model's inputs, in order of first appearance, each with the inputs
// and axes that use it ("input_ids:1").
struct SymbolicDim {
  std::string name;
  std::vector<std::string> uses;
};
std::vector<SymbolicDim> symbolic_dims(const std::filesystem::path& path);

// The data files that a model's initializers lie in, as the model names them. Throws Error for what
// is not an ONNX file.
std::set<std::string> data_locations(const std::filesystem::path& path);

// What a node computes, in standard operators: a graph whose inputs are called x<k> for its k-th
// operand, where present, and whose outputs y<k> for its k-th result. Nullopt for a node that has
// no such form.
using FunctionBody = std::function<std::optional<ir::Graph>(const ir::Graph&, const ir::Node&)>;

// The name of a dimension of a value whose extent depends on the length of the sequence; "" for one
// that is written as a number.
using DimName = std::function<std::string(ValueId value, size_t axis)>;

struct ExportOptions {
  bool check = true;  // run ONNX's checker and strict shape inference on the result
  DimName dim_name;   // nothing: every extent is written as a number
  // Constants found here are written as references; the caller writes the data file itself.
  const DataFile* data = nullptr;
  // Bodies for operators of other domains than the default, written as functions of the model.
  FunctionBody function_body;
  // Written as ONNX's sharding annotations, which raise the file format to version 11.
  const ir::GraphSharding* sharding = nullptr;
};

// Writes a model; appears under its name by rename, complete or not at all. Deterministic: the same
// graph gives the same bytes. Locations of external data are written as they stand in the graph.
void export_model(const ir::Graph& graph, const std::filesystem::path& path,
                  const ExportOptions& options = {});

// What import_model would read of what export_model would write into `folder`.
ir::Graph through_file(const ir::Graph& graph, const std::filesystem::path& folder,
                       const ExportOptions& options = {});

// ONNX's text format.
std::string print_text(const ir::Graph& graph);
ir::Graph parse_text(const std::string& text, const ImportOptions& options = {});

// Result types of a node of a standard operator, by ONNX's own inference; constants among its
// operands are seen. Throws Error for an operator it does not know.
std::vector<ir::Type> infer_types(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::onnx_io
