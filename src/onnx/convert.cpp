#include <google/protobuf/repeated_field.h>

#include <cstring>

#include "base/error.h"
#include "onnx/proto.h"

namespace autosp::onnx_io {

namespace {

using ir::DataType;
using onnx::TensorProto;

// Fills `out` from a repeated field, one (narrowing) conversion per element.
template <typename T, typename Field>
void fill(const Field& field, std::byte* out) {
  for (int k = 0; k < field.size(); ++k) {
    const T element = static_cast<T>(field.Get(k));
    std::memcpy(out + static_cast<size_t>(k) * sizeof(T), &element, sizeof(T));
  }
}

// The number of elements in the typed field that holds this data type.
int64_t typed_count(const TensorProto& proto) {
  switch (static_cast<DataType>(proto.data_type())) {
    case DataType::kFloat32:
      return proto.float_data_size();
    case DataType::kFloat64:
      return proto.double_data_size();
    case DataType::kInt64:
      return proto.int64_data_size();
    case DataType::kUInt32:
    case DataType::kUInt64:
      return proto.uint64_data_size();
    default:
      return proto.int32_data_size();
  }
}

void fill_typed(const TensorProto& proto, DataType type, std::byte* out) {
  switch (type) {
    case DataType::kFloat32:
      return fill<float>(proto.float_data(), out);
    case DataType::kFloat64:
      return fill<double>(proto.double_data(), out);
    case DataType::kInt64:
      return fill<int64_t>(proto.int64_data(), out);
    case DataType::kUInt32:
      return fill<uint32_t>(proto.uint64_data(), out);
    case DataType::kUInt64:
      return fill<uint64_t>(proto.uint64_data(), out);
    case DataType::kInt32:
      return fill<int32_t>(proto.int32_data(), out);
    case DataType::kInt16:
      return fill<int16_t>(proto.int32_data(), out);
    case DataType::kUInt16:
    case DataType::kFloat16:
    case DataType::kBFloat16:
      return fill<uint16_t>(proto.int32_data(), out);
    case DataType::kInt8:
      return fill<int8_t>(proto.int32_data(), out);
    case DataType::kUInt8:
      return fill<uint8_t>(proto.int32_data(), out);
    case DataType::kBool:
      return fill<bool>(proto.int32_data(), out);
    case DataType::kString:
    case DataType::kUndefined:
      break;
  }
  AUTOSP_CHECK(false, "tensor of type {}", static_cast<int>(type));
}

}  // namespace

bool is_supported(int32_t onnx_type) {
  switch (onnx_type) {
    case TensorProto::FLOAT:
    case TensorProto::UINT8:
    case TensorProto::INT8:
    case TensorProto::UINT16:
    case TensorProto::INT16:
    case TensorProto::INT32:
    case TensorProto::INT64:
    case TensorProto::BOOL:
    case TensorProto::FLOAT16:
    case TensorProto::DOUBLE:
    case TensorProto::UINT32:
    case TensorProto::UINT64:
    case TensorProto::BFLOAT16:
      return true;
    default:
      return false;
  }
}

ir::Type tensor_type(const TensorProto& proto, const std::string& where) {
  if (!is_supported(proto.data_type())) {
    throw Error("{} has element type {}, which is not supported", where,
                onnx::TensorProto_DataType_Name(
                    static_cast<onnx::TensorProto_DataType>(proto.data_type())));
  }
  ir::Type type{static_cast<DataType>(proto.data_type()), {}};
  for (int64_t extent : proto.dims()) {
    if (extent < 0) throw Error("{} has the negative extent {}", where, extent);
    type.shape.push_back(extent);
  }
  return type;
}

ir::Tensor to_tensor(const TensorProto& proto, const std::string& where) {
  const ir::Type type = tensor_type(proto, where);
  if (proto.has_raw_data()) {
    const std::string& raw = proto.raw_data();
    if (static_cast<int64_t>(raw.size()) != type.num_bytes()) {
      throw Error("{} is {}, which takes {} bytes, but the file holds {}", where,
                  ir::to_string(type), type.num_bytes(), raw.size())
          .help("export the model again: the file is damaged");
    }
    return ir::Tensor(type, std::as_bytes(std::span(raw.data(), raw.size())));
  }
  if (typed_count(proto) != type.num_elements()) {
    throw Error("{} is {}, which has {} elements, but the file holds {}", where,
                ir::to_string(type), type.num_elements(), typed_count(proto))
        .help("export the model again: the file is damaged");
  }
  ir::Tensor tensor(type);
  fill_typed(proto, type.dtype, tensor.mutable_bytes());
  return tensor;
}

TensorProto to_proto(const ir::Tensor& tensor, const std::string& name) {
  TensorProto proto;
  if (!name.empty()) proto.set_name(name);
  proto.set_data_type(static_cast<int32_t>(tensor.dtype()));
  for (int64_t extent : tensor.shape()) proto.add_dims(extent);
  const auto bytes = tensor.bytes();
  proto.set_raw_data(bytes.data(), bytes.size());
  return proto;
}

void set_type(const ir::Type& type, onnx::TypeProto* proto) {
  auto* tensor = proto->mutable_tensor_type();
  tensor->set_elem_type(static_cast<int32_t>(type.dtype));
  auto* shape = tensor->mutable_shape();
  for (int64_t extent : type.shape) shape->add_dim()->set_dim_value(extent);
}

ir::Attribute to_attribute(const onnx::AttributeProto& proto, const std::string& where) {
  using onnx::AttributeProto;
  switch (proto.type()) {
    case AttributeProto::INT:
      return int64_t{proto.i()};
    case AttributeProto::FLOAT:
      return proto.f();
    case AttributeProto::STRING:
      return proto.s();
    case AttributeProto::INTS:
      return std::vector<int64_t>(proto.ints().begin(), proto.ints().end());
    case AttributeProto::FLOATS:
      return std::vector<float>(proto.floats().begin(), proto.floats().end());
    case AttributeProto::STRINGS:
      return std::vector<std::string>(proto.strings().begin(), proto.strings().end());
    case AttributeProto::TENSOR:
      return to_tensor(proto.t(), fmt::format("attribute '{}' of {}", proto.name(), where));
    default:
      throw Error("attribute '{}' of {} is of the unsupported kind {}", proto.name(), where,
                  onnx::AttributeProto_AttributeType_Name(proto.type()));
  }
}

onnx::AttributeProto to_proto(const std::string& name, const ir::Attribute& attribute) {
  using onnx::AttributeProto;
  AttributeProto proto;
  proto.set_name(name);
  struct Setter {
    AttributeProto& proto;
    void operator()(int64_t value) const {
      proto.set_type(AttributeProto::INT);
      proto.set_i(value);
    }
    void operator()(float value) const {
      proto.set_type(AttributeProto::FLOAT);
      proto.set_f(value);
    }
    void operator()(const std::string& value) const {
      proto.set_type(AttributeProto::STRING);
      proto.set_s(value);
    }
    void operator()(const std::vector<int64_t>& values) const {
      proto.set_type(AttributeProto::INTS);
      proto.mutable_ints()->Add(values.begin(), values.end());
    }
    void operator()(const std::vector<float>& values) const {
      proto.set_type(AttributeProto::FLOATS);
      proto.mutable_floats()->Add(values.begin(), values.end());
    }
    void operator()(const std::vector<std::string>& values) const {
      proto.set_type(AttributeProto::STRINGS);
      for (const std::string& value : values) proto.add_strings(value);
    }
    void operator()(const ir::Tensor& value) const {
      proto.set_type(AttributeProto::TENSOR);
      *proto.mutable_t() = to_proto(value);
    }
  };
  std::visit(Setter{proto}, attribute);
  return proto;
}

}  // namespace autosp::onnx_io
