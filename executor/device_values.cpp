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

DeviceValues::Value& DeviceValues::at(const std::string& name) {
  const auto found = values_.find(name);
  AUTOSP_CHECK(found != values_.end(), "no program has an input '{}'", name);
  return found->second;
}

bool DeviceValues::exists(const std::string& name) const {
  const auto found = values_.find(name);
  return found != values_.end() && found->second.exists;
}

int64_t DeviceValues::bytes(const std::string& name) const {
  return exists(name) ? values_.at(name).type.num_bytes() : 0;
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

void DeviceValues::set_zeros(const std::string& name) {
  Value& value = at(name);
  if (value.offset < 0) return set(name, ir::Tensor(value.type));
  value.exists = true;
  value.host = {};
  const int64_t bytes = value.type.num_bytes();
  if (bytes > 0) device_.clear(StreamId::kCompute, memory_.at(value.offset), bytes);
}

void DeviceValues::drop(const std::string& name) {
  Value& value = at(name);
  value.exists = false;
  value.host = {};
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
