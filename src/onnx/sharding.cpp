#include "onnx/sharding.h"

#include <set>

namespace autosp::onnx_io {

namespace {

// Numbers below zero stand for groups of devices.
void add_shard(const std::vector<int64_t>& devices, onnx::ShardingSpecProto* spec) {
  if (devices.size() == 1) {
    spec->add_device(devices[0]);
    return;
  }
  const int64_t group = -1 - spec->index_to_device_group_map_size();
  spec->add_device(group);
  auto* entry = spec->add_index_to_device_group_map();
  entry->set_key(group);
  for (int64_t device : devices) entry->add_value(device);
}

void add_spec(const std::string& name, const ir::TensorSharding& tensor,
              onnx::NodeDeviceConfigurationProto* configuration) {
  auto* spec = configuration->add_sharding_spec();
  spec->set_tensor_name(name);
  for (const auto& devices : tensor.shards) add_shard(devices, spec);
  for (const ir::ShardedDim& dim : tensor.dims) {
    auto* sharded = spec->add_sharded_dim();
    sharded->set_axis(dim.axis);
    for (const ir::ShardedFactor& factor : dim.factors) {
      auto* simple = sharded->add_simple_sharding();
      simple->set_dim_value(factor.extent);
      simple->set_num_shards(factor.shards);
    }
  }
}

}  // namespace

void add_configuration(const ir::GraphSharding& sharding, onnx::ModelProto* model) {
  auto* configuration = model->add_configuration();
  configuration->set_name(sharding.configuration);
  configuration->set_num_devices(static_cast<int32_t>(sharding.devices.size()));
  for (const std::string& device : sharding.devices) configuration->add_device(device);
}

void add_device_configuration(const ir::GraphSharding& sharding, const ir::NodeSharding& tensors,
                              onnx::NodeProto* node) {
  onnx::NodeDeviceConfigurationProto configuration;
  configuration.set_configuration_id(sharding.configuration);
  std::set<std::string> described;
  const auto add = [&](const auto& names, const auto& specs) {
    for (int k = 0; k < names.size() && k < static_cast<int>(specs.size()); ++k) {
      const auto& spec = specs[static_cast<size_t>(k)];
      if (names[k].empty() || !spec || !described.insert(names[k]).second) continue;
      add_spec(names[k], *spec, &configuration);
    }
  };
  add(node->input(), tensors.inputs);
  add(node->output(), tensors.outputs);
  if (configuration.sharding_spec_size() > 0) *node->add_device_configurations() = configuration;
}

}  // namespace autosp::onnx_io
