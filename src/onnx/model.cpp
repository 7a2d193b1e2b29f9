#include "onnx/model.h"

#include "base/context.h"
#include "base/error.h"
#include "onnx/dims.h"
#include "onnx/proto.h"

namespace autosp::onnx_io {

namespace {

// Errors of the importer name the node; this adds the file, and what to do with it.
template <typename Read>
auto reading(const std::string& what, Read&& read) {
  return with_context("while reading " + what,
                      "check the model with onnx.checker.check_model(model, full_check=True), and "
                      "export it again",
                      std::forward<Read>(read));
}

}  // namespace

ir::Graph import_model(const std::filesystem::path& path, const ImportOptions& options) {
  return reading(fmt::format("'{}'", path.string()),
                 [&] { return import_proto(load_model(path), path.parent_path(), options); });
}

ir::Graph through_file(const ir::Graph& graph, const std::filesystem::path& folder,
                       const ExportOptions& options) {
  return import_proto(export_proto(graph, options), folder, {});
}

std::vector<SymbolicDim> symbolic_dims(const std::filesystem::path& path) {
  return reading(fmt::format("'{}'", path.string()),
                 [&] { return symbolic_dims_of(fed_inputs(load_model(path).graph())); });
}

std::set<std::string> data_locations(const std::filesystem::path& path) {
  const onnx::ModelProto model =
      reading(fmt::format("'{}'", path.string()), [&] { return load_model(path); });
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
  return reading("the given text", [&] {
    return import_proto(parse_model_text(text, "the given text"), ".", options);
  });
}

}  // namespace autosp::onnx_io
