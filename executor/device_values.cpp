#include "executor/device_values.h"

namespace autosp::executor {

void DeviceValues::declare(const std::string& name, const ir::Type& type) {
  const Value& value = values_.try_emplace(name, Value{.type = type, .host = {}}).first->second;
  AUTOSP_CHECK(value.type == type, "input '{}' is {} and {}", name, ir::to_string(value.type),
               ir::to_string(type));
}

int64_t DeviceValues::place(const std::string& name) {
  Value& value = at(name);
  if (value.offset < 0) value.offset = memory_.add(value.type.num_bytes());
  return value.offset;
}

std::map<std::string, ir::Type> DeviceValues::types() const {
  std::map<std::string, ir::Type> result;
  for (const auto& [name, value] : values_) {
    if (value.exists) result.emplace(name, value.type);
  }
  return result;
}

void DeviceValues::set(const std::string& name, const ir::Tensor& tensor) {
  Value& value = at(name);
  AUTOSP_CHECK(tensor.type() == value.type, "'{}' is {}, not {}", name,
               ir::to_string(tensor.type()), ir::to_string(value.type));
  const bool same = value.exists && value.host.type() == tensor.type() &&
                    value.host.bytes().data() == tensor.bytes().data();
  value.exists = true;
  value.host = tensor;
  const int64_t bytes = tensor.type().num_bytes();
  if (same || value.offset < 0 || bytes == 0) return;
  device_.upload(StreamId::kCompute, memory_.at(value.offset), tensor.bytes().data(), bytes);
}

void DeviceValues::take(const std::string& name, const std::byte* from) {
  Value& value = at(name);
  value.exists = true;
  if (value.offset < 0) {
    value.host = downloaded(value.type, from);
    return;
  }
  value.host = {};
  const int64_t bytes = value.type.num_bytes();
  if (bytes == 0) return;
  const Box all{{0}, {bytes}};
  device_.copy_box(StreamId::kCompute, 1, {from, {bytes}}, all, {memory_.at(value.offset), {bytes}},
                   all);
}

const ir::Tensor& DeviceValues::on_host(const std::string& name) {
  Value& value = at(name);
  AUTOSP_CHECK(value.exists, "'{}' has no value", name);
  if (value.host.dtype() == ir::DataType::kUndefined) {
    value.host = downloaded(value.type, memory_.at(value.offset));
  }
  return value.host;
}

ir::Tensor DeviceValues::downloaded(const ir::Type& type, const std::byte* from) {
  ir::Tensor tensor(type);
  const int64_t bytes = type.num_bytes();
  if (bytes > 0) device_.download(StreamId::kCompute, tensor.mutable_bytes(), from, bytes);
  return tensor;
}

}  // namespace autosp::executor
