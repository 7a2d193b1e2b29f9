// Bodies, in standard operators, of the operators of this project's domain that a model uses, so
// that a runtime without kernels for them can run it. Private to this folder.
#pragma once

#include <onnx/onnx_pb.h>

#include <map>
#include <string>

#include "onnx/model.h"

namespace autosp::onnx_io {

// One function per operator, attributes, operand types and present results, or fewer where bodies
// are equal: they hold numbers where the operator has sizes. The first of an operator has its name,
// others a number behind it (Attention_1): ONNX Runtime up to 1.26 at least ignores overloads
// and takes any function of that name.
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

  // The name of `node`'s function, which is added unless there is an equal one.
  std::string name_of(const ir::Node& node, onnx::FunctionProto function);

  const ir::Graph& graph_;
  FunctionBody body_;
  DimName dim_name_;
  std::map<std::string, std::string> names_;    // of functions, by signature
  std::map<std::string, std::string> written_;  // of functions, by what they are but for the name
  std::map<std::string, int> counts_;           // by operator
  std::vector<onnx::FunctionProto> functions_;
};

// The operator whose function this is the name of: "Attention_1" is one of "Attention".
std::string operator_of_function(const std::string& name);

}  // namespace autosp::onnx_io
