// ONNX's messages for ir/sharding.h. Private to this folder.
#pragma once

#include <onnx/onnx_pb.h>

#include "ir/sharding.h"

namespace autosp::onnx_io {

// The oldest file format that has them.
inline constexpr int64_t kShardingIrVersion = 11;

void add_configuration(const ir::GraphSharding& sharding, onnx::ModelProto* model);

// To a node whose inputs and outputs have their names; a tensor is described once.
void add_device_configuration(const ir::GraphSharding& sharding, const ir::NodeSharding& tensors,
                              onnx::NodeProto* node);

}  // namespace autosp::onnx_io
