// Binds symbolic dimensions to numbers. Private.
#pragma once

#include <optional>

#include "onnx/model.h"
#include "onnx/proto.h"

namespace autosp::onnx_io {

// The name that messages and --dim use for a dimension without a number: its own, or "INPUT:AXIS"
// when it has none.
std::string dim_name(const onnx::TensorShapeProto::Dimension& dim, const std::string& value,
                     int axis);

class DimBinder {
 public:
  // `inputs` are the graph inputs that the caller feeds.
  // Throws Error when options contradict the model or each other, or leave dimensions unbound.
  DimBinder(const std::vector<const onnx::ValueInfoProto*>& inputs, const ImportOptions& options);

  // The type of a value, or nullopt when it is not a tensor of known extents.
  std::optional<ir::Type> bind(const onnx::ValueInfoProto& value) const;

 private:
  std::map<std::string, int64_t> dims_;
};

std::vector<SymbolicDim> symbolic_dims_of(const std::vector<const onnx::ValueInfoProto*>& inputs);

// The inputs that are fed, not initialized.
std::vector<const onnx::ValueInfoProto*> fed_inputs(const onnx::GraphProto& graph);

}  // namespace autosp::onnx_io
