// Bodies, in standard operators, of the operators of this project's domain that a model uses, so
// that a runtime without kernels for them can run it. Private to this folder.
#pragma once

#include <onnx/onnx_pb.h>

#include <map>
#include <string>

#include "onnx/model.h"

namespace autosp::onnx_io {

// One function per operator, attributes, operand types and present results: bodies hold numbers
// where the operator has sizes. They differ in their overload.
class Functions {
 public:
  Functions(const ir::Graph& graph, const ExportOptions& options)
      : graph_(graph), body_(options.function_body), dim_name_(options.dim_name) {}

  // Names the body of `node` in `proto`, which was made from it; nothing when there is none.
  void bind(const ir::Node& node, onnx::NodeProto* proto);

  // Adds the functions that were named to the model.
  void write(onnx::ModelProto* model) const;

 private:
  // Everything that a body depends on.
  std::string signature(const ir::Node& node) const;

  const ir::Graph& graph_;
  FunctionBody body_;
  DimName dim_name_;
  std::map<std::string, std::string> overloads_;  // by signature
  std::map<std::string, int> counts_;             // by operator
  std::vector<onnx::FunctionProto> functions_;
};

}  // namespace autosp::onnx_io
