#include "onnx/model.h"

#include "onnx/dims.h"
#include "onnx/proto.h"

namespace autosp::onnx_io {

ir::Graph import_model(const std::filesystem::path& path, const ImportOptions& options) {
  return import_proto(load_model(path), path.parent_path(), options);
}

std::vector<SymbolicDim> symbolic_dims(const std::filesystem::path& path) {
  return symbolic_dims_of(fed_inputs(load_model(path).graph()));
}

ir::Graph parse_text(const std::string& text, const ImportOptions& options) {
  return import_proto(parse_model_text(text, "the given text"), ".", options);
}

}  // namespace autosp::onnx_io
