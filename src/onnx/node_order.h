// The order in which a node list can be read. Private.
#pragma once

#include <functional>
#include <vector>

#include "onnx/proto.h"

namespace autosp::onnx_io {

using NodeList = google::protobuf::RepeatedPtrField<onnx::NodeProto>;

// Positions of `nodes` so that each follows the ones it reads: the file's order where that will do.
// `is_known` tells names defined outside the list. Throws Error for a cycle, and for a name that
// nothing or more than one node defines.
std::vector<int> node_order(const NodeList& nodes,
                            const std::function<bool(const std::string&)>& is_known);

// "layer0/scores: Softmax", for messages; an unnamed node is known by its first result.
std::string describe(const onnx::NodeProto& node);

}  // namespace autosp::onnx_io
