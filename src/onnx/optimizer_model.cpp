#include "onnx/optimizer_model.h"

#include "onnx/proto.h"

namespace autosp::onnx_io {

std::vector<PlainNode> read_nodes(const std::filesystem::path& path) {
  const onnx::ModelProto model = load_model(path);
  std::vector<PlainNode> nodes;
  for (const onnx::NodeProto& node : model.graph().node()) {
    PlainNode& plain = nodes.emplace_back();
    plain.domain = node.domain();
    plain.op = node.op_type();
    for (const onnx::AttributeProto& attribute : node.attribute()) {
      plain.attributes.set(attribute.name(), to_attribute(attribute, node.name()));
    }
  }
  return nodes;
}

}  // namespace autosp::onnx_io
