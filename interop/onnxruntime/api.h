// The part of ONNX Runtime's C interface that a library of operators needs, declared here because
// no Debian package and no wheel carries its headers.
//
// The interface is a table of functions that only ever grows: a function keeps its place from the
// version that brought it on. `kApiVersion` is the oldest version that has all we call (17: ONNX
// Runtime 1.17); a runtime of this or a later version hands that table out, and reads no more of
// OrtCustomOp than that version had.
//
// Functions return null for success, or a status that the caller releases.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace autosp::onnxruntime {

inline constexpr uint32_t kApiVersion = 17;

// Opaque to us.
struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;

// Numbered as ir::DataType is. As the type of an operand: any.
enum class ElementType : int { kUndefined = 0, kInt64 = 7 };
enum class Arity : int { kRequired = 0, kOptional = 1 };
enum class MemoryType : int { kDefault = 0 };
enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

// The table of functions; call() knows their types.
struct OrtApi {
  void (*functions[276])();
};

struct OrtApiBase {
  const OrtApi* (*get_api)(uint32_t version);  // null: older than that
  const char* (*get_version)();
};

// One operator. Every function gets the operator itself; those that may be null say so.
struct OrtCustomOp {
  uint32_t version = kApiVersion;
  void* (*create_kernel)(const OrtCustomOp*, const OrtApi*,
                         const OrtKernelInfo*) = nullptr;  // null
  const char* (*name)(const OrtCustomOp*) = nullptr;
  const char* (*execution_provider)(const OrtCustomOp*) = nullptr;  // returns null: the CPU's
  ElementType (*input_type)(const OrtCustomOp*, size_t index) = nullptr;
  size_t (*input_count)(const OrtCustomOp*) = nullptr;
  ElementType (*output_type)(const OrtCustomOp*, size_t index) = nullptr;
  size_t (*output_count)(const OrtCustomOp*) = nullptr;
  void (*compute)(void* kernel, OrtKernelContext*) = nullptr;  // null
  void (*destroy_kernel)(void* kernel) = nullptr;
  Arity (*input_arity)(const OrtCustomOp*, size_t index) = nullptr;
  Arity (*output_arity)(const OrtCustomOp*, size_t index) = nullptr;
  MemoryType (*input_memory)(const OrtCustomOp*, size_t index) = nullptr;
  int (*variadic_input_least)(const OrtCustomOp*) = nullptr;      // null
  int (*variadic_input_one_type)(const OrtCustomOp*) = nullptr;   // null
  int (*variadic_output_least)(const OrtCustomOp*) = nullptr;     // null
  int (*variadic_output_one_type)(const OrtCustomOp*) = nullptr;  // null
  // Used in place of create_kernel and compute when those are null.
  OrtStatus* (*create_kernel_or_fail)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                                      void** kernel) = nullptr;
  OrtStatus* (*compute_or_fail)(void* kernel, OrtKernelContext*) = nullptr;
  OrtStatus* (*infer_shapes)(const OrtCustomOp*, OrtShapeInferContext*) = nullptr;  // null
  int (*first_version)(const OrtCustomOp*) = nullptr;  // of the operator; null: 1
  int (*last_version)(const OrtCustomOp*) = nullptr;
};

// A function of the table: its place and its type.
template <size_t place, typename Type>
struct Function {};

inline constexpr Function<0, OrtStatus*(ErrorCode, const char* message)> kCreateStatus;
inline constexpr Function<2, const char*(const OrtStatus*)> kGetErrorMessage;
inline constexpr Function<26, OrtStatus*(const char* domain, OrtCustomOpDomain**)> kCreateDomain;
inline constexpr Function<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> kAddToDomain;
inline constexpr Function<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> kAddDomain;
inline constexpr Function<51, OrtStatus*(OrtValue*, void** data)> kGetTensorData;
inline constexpr Function<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, ElementType*)>
    kGetElementType;
inline constexpr Function<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)> kGetRank;
inline constexpr Function<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t rank)>
    kGetShape;
inline constexpr Function<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>
    kGetTypeAndShape;
inline constexpr Function<86, OrtStatus*(const OrtKernelInfo*, const char* name, int64_t*)> kGetInt;
inline constexpr Function<88, OrtStatus*(const OrtKernelContext*, size_t*)> kGetInputCount;
inline constexpr Function<89, OrtStatus*(const OrtKernelContext*, size_t*)> kGetOutputCount;
inline constexpr Function<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>
    kGetInput;
inline constexpr Function<91, OrtStatus*(OrtKernelContext*, size_t index, const int64_t* shape,
                                         size_t rank, OrtValue**)>
    kGetOutput;
inline constexpr Function<93, void(OrtStatus*)> kReleaseStatus;
inline constexpr Function<99, void(OrtTensorTypeAndShapeInfo*)> kReleaseTypeAndShape;
// Called twice: with a null buffer it writes how large the buffer must be.
inline constexpr Function<163,
                          OrtStatus*(const OrtKernelInfo*, const char* name, int64_t*, size_t*)>
    kGetInts;
inline constexpr Function<268, OrtStatus*(const OrtShapeInferContext*, size_t index,
                                          OrtTensorTypeAndShapeInfo**)>
    kGetOperandType;
inline constexpr Function<270, OrtStatus*(const OrtShapeInferContext*, size_t index,
                                          const OrtTensorTypeAndShapeInfo*)>
    kSetResultType;
inline constexpr Function<237, OrtStatus*(const OrtSessionOptions*, const char* key, int* has)>
    kHasSetting;
// As kGetInts; sizes count the ending zero.
inline constexpr Function<238,
                          OrtStatus*(const OrtSessionOptions*, const char* key, char*, size_t*)>
    kGetSetting;
inline constexpr Function<244, OrtStatus*(const OrtKernelInfo*, char*, size_t*)> kGetNodeName;

template <size_t place, typename Result, typename... Arguments>
Result call(const OrtApi& api, Function<place, Result(Arguments...)> /*function*/,
            std::type_identity_t<Arguments>... arguments) {
  static_assert(place < std::extent_v<decltype(OrtApi::functions)>);
  return reinterpret_cast<Result (*)(Arguments...)>(api.functions[place])(arguments...);
}

}  // namespace autosp::onnxruntime
