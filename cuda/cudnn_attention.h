// Attention and its gradient through cuDNN's graphs, whose header-only front end is included by one
// source file alone: it takes a minute to compile. Built where the headers were found.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/attention_band.h"
#include "ir/type.h"

namespace autosp::cuda {

// All arrays are row-major [batch, heads, positions, width], of one 16-bit type.
struct AttentionShape {
  ir::DataType type = ir::DataType::kBFloat16;
  int64_t batch = 0, query_heads = 0, kv_heads = 0, queries = 0, keys = 0;
  int64_t width = 0, value_width = 0;
  float scale = 1;
  Band band;
  bool backward = false;
  bool keeps_statistics = true;  // of the forward pass, which recomputing one may drop
  // Of the backward pass: query gradients are summed in a fixed order. On Hopper that takes cuDNN
  // before 9.25 memory for a 16-bit number per query head, query and key.
  bool ordered = true;
  auto operator<=>(const AttentionShape&) const = default;
};

// What cuDNN reads and writes, in device memory; `statistics` is max + log(sum) of every row,
// float32 [batch, query heads, queries].
struct AttentionArrays {
  const void* query = nullptr;
  const void* key = nullptr;
  const void* value = nullptr;
  void* output = nullptr;       // read by the backward pass
  float* statistics = nullptr;  // likewise; null where the forward pass drops them
  const void* output_gradient = nullptr;
  void* query_gradient = nullptr;
  void* key_gradient = nullptr;
  void* value_gradient = nullptr;
};

class CudnnAttention {
 public:
  virtual ~CudnnAttention() = default;
  virtual int64_t workspace_bytes() const = 0;
  // Throws Error.
  virtual void run(const AttentionArrays& arrays, void* workspace, cudaStream_t stream) = 0;
};

// Null, and `reason` says why, where cuDNN is missing or has no plan for the shape on this device.
std::unique_ptr<CudnnAttention> plan_attention(const AttentionShape& shape, std::string& reason);

// What cuDNN says of the shape for a device that need not be there: empty where it has a plan.
// `properties`: the device's, in JSON, as cuDNN writes them; `architecture`: 90 is sm_90.
std::string check_attention(const AttentionShape& shape, int architecture,
                            const std::string& properties);

}  // namespace autosp::cuda
