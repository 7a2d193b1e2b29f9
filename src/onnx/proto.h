// Conversions between ONNX's protobuf messages and ir types. Private to this folder.
#pragma once

#include <onnx/onnx_pb.h>

#include <filesystem>
#include <string>

#include "ir/graph.h"
#include "onnx/model.h"

namespace autosp::onnx_io {

// The node property that keeps ir::Node::origin in a file.
inline constexpr const char* kOriginKey = "autosp.origin";
// Likewise ir::Node::phase.
inline constexpr const char* kPhaseKey = "autosp.phase";

// Whether ir::DataType has this TensorProto.DataType.
bool is_supported(int32_t onnx_type);

// Throws Error naming `where` when the data type is not supported or the bytes do not fit the
// shape.
ir::Type tensor_type(const onnx::TensorProto& proto, const std::string& where);
ir::Tensor to_tensor(const onnx::TensorProto& proto, const std::string& where);
onnx::TensorProto to_proto(const ir::Tensor& tensor, const std::string& name = "");

void set_type(const ir::Type& type, onnx::TypeProto* proto);

// Throws Error for subgraphs, sparse tensors and types.
ir::Attribute to_attribute(const onnx::AttributeProto& proto, const std::string& where);
onnx::AttributeProto to_proto(const std::string& name, const ir::Attribute& attribute);

// Where an external initializer's bytes are. Throws Error unless the file exists inside `folder`
// and holds them.
ir::ExternalData external_data(const onnx::TensorProto& proto, const ir::Type& type,
                               const std::filesystem::path& folder);

// Its bytes: for small shape constants only.
ir::Tensor read_external(const ir::ExternalData& data, const ir::Type& type,
                         const std::filesystem::path& folder);

onnx::ModelProto load_model(const std::filesystem::path& path);
onnx::ModelProto parse_model_text(const std::string& text, const std::string& where);

ir::Graph import_proto(onnx::ModelProto model, const std::filesystem::path& folder,
                       const ImportOptions& options);
onnx::ModelProto export_proto(const ir::Graph& graph, const ExportOptions& options = {});

}  // namespace autosp::onnx_io
