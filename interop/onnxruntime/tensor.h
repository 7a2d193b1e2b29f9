// Operands and results of a kernel, as the runtime holds them.
#pragma once

#include "ir/type.h"
#include "onnxruntime/api.h"

namespace autosp::onnxruntime {

struct Tensor {
  ir::DataType dtype = ir::DataType::kUndefined;
  ir::Shape shape;
  void* data = nullptr;
};

Tensor read_tensor(const OrtApi& api, const OrtValue* value);

}  // namespace autosp::onnxruntime
