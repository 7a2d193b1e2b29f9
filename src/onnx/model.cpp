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

std::set<std::string> data_locations(const std::filesystem::path& path) {
  const onnx::ModelProto model = load_model(path);
  std::set<std::string> locations;
  for (const onnx::TensorProto& tensor : model.graph().initializer()) {
    if (tensor.data_location() != onnx::TensorProto::EXTERNAL) continue;
    for (const auto& entry : tensor.external_data()) {
      if (entry.key() == "location") locations.insert(entry.value());
    }
  }
  return locations;
}

ir::Graph parse_text(const std::string& text, const ImportOptions& options) {
  return import_proto(parse_model_text(text, "the given text"), ".", options);
}

}  // namespace autosp::onnx_io
