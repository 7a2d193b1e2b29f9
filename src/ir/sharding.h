// How the tensors of a graph are divided over devices, as ONNX says it: ModelProto.configuration
// and NodeProto.device_configurations, from version 11 of its file format on.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace autosp::ir {

// A dimension is a product of factors, major to minor; each is cut into so many shards.
struct ShardedFactor {
  int64_t extent = 1;
  int64_t shards = 1;
  bool operator==(const ShardedFactor&) const = default;
};

struct ShardedDim {
  int64_t axis = 0;
  std::vector<ShardedFactor> factors;
};

struct TensorSharding {
  std::vector<ShardedDim> dims;  // that are cut; none: every device holds all of it
  // Row-major over the cut factors, the last varying fastest: the devices that hold each shard.
  std::vector<std::vector<int64_t>> shards;
};

// By position; nullopt: not data, or the devices hold terms of a sum, which ONNX cannot say.
struct NodeSharding {
  std::string origin;  // the node's (ir::Node): names alone may be taken by other nodes
  std::vector<std::optional<TensorSharding>> inputs;
  std::vector<std::optional<TensorSharding>> outputs;
};

struct GraphSharding {
  std::string configuration;                  // a name for it
  std::vector<std::string> devices;           // names, by rank
  std::map<std::string, NodeSharding> nodes;  // by name
};

}  // namespace autosp::ir
