#include "onnxruntime/recompute_barrier.h"

#include <cstring>

#include "onnxruntime/status.h"
#include "onnxruntime/tensor.h"

namespace autosp::onnxruntime {

namespace {

struct Barrier : OrtCustomOp {
  explicit Barrier(const OrtApi& runtime);
  const OrtApi* api;
};

// The runtime cannot tell which operand's type is the result's: this does.
OrtStatus* infer(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const OrtApi& api = *static_cast<const Barrier*>(op)->api;
  return guarded(api, [&] {
    OrtTensorTypeAndShapeInfo* type = nullptr;  // the context's own
    check(api, call(api, kGetOperandType, context, 0, &type));
    check(api, call(api, kSetResultType, context, 0, type));
  });
}

// A kernel has no state but the runtime's functions.
OrtStatus* make_kernel(const OrtCustomOp* /*op*/, const OrtApi* api, const OrtKernelInfo* /*info*/,
                       void** kernel) {
  *kernel = const_cast<OrtApi*>(api);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  return nullptr;
}

// The interface of this version cannot let a result share its operand's bytes.
OrtStatus* copy(void* kernel, OrtKernelContext* context) {
  const auto& api = *static_cast<const OrtApi*>(kernel);
  return guarded(api, [&] {
    const OrtValue* input = nullptr;
    check(api, call(api, kGetInput, context, 0, &input));
    const Tensor x = read_tensor(api, input);
    OrtValue* output = nullptr;
    check(api, call(api, kGetOutput, context, 0, x.shape.data(), x.shape.size(), &output));
    void* y = nullptr;
    check(api, call(api, kGetTensorData, output, &y));
    std::memcpy(y, x.data, static_cast<size_t>(ir::Type{x.dtype, x.shape}.num_bytes()));
  });
}

Barrier::Barrier(const OrtApi& runtime) : api(&runtime) {
  name = [](const OrtCustomOp*) { return "RecomputeBarrier"; };
  execution_provider = [](const OrtCustomOp*) -> const char* { return nullptr; };
  input_type = [](const OrtCustomOp*, size_t) { return ElementType::kUndefined; };
  input_count = [](const OrtCustomOp*) -> size_t { return 2; };
  output_type = [](const OrtCustomOp*, size_t) { return ElementType::kUndefined; };
  output_count = [](const OrtCustomOp*) -> size_t { return 1; };
  destroy_kernel = [](void*) {};
  input_arity = [](const OrtCustomOp*, size_t) { return Arity::kRequired; };
  output_arity = [](const OrtCustomOp*, size_t) { return Arity::kRequired; };
  input_memory = [](const OrtCustomOp*, size_t) { return MemoryType::kDefault; };
  create_kernel_or_fail = make_kernel;
  compute_or_fail = copy;
  infer_shapes = infer;
}

}  // namespace

const OrtCustomOp* make_recompute_barrier(const OrtApi& api) { return new Barrier(api); }

}  // namespace autosp::onnxruntime
