#include "onnxruntime/tensor.h"

#include <memory>

#include "onnxruntime/status.h"

namespace autosp::onnxruntime {

Tensor read_tensor(const OrtApi& api, const OrtValue* value) {
  Tensor tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, call(api, kGetTypeAndShape, value, &info));
  const auto release = [&](auto* owned) { call(api, kReleaseTypeAndShape, owned); };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> owner(info, release);
  ElementType type = ElementType::kUndefined;
  check(api, call(api, kGetElementType, info, &type));
  size_t rank = 0;
  check(api, call(api, kGetRank, info, &rank));
  tensor.dtype = static_cast<ir::DataType>(type);
  tensor.shape.resize(rank);
  check(api, call(api, kGetShape, info, tensor.shape.data(), rank));
  check(api, call(api, kGetTensorData, const_cast<OrtValue*>(value), &tensor.data));  // NOLINT
  return tensor;
}

}  // namespace autosp::onnxruntime
