// Attention through cuDNN where it has a plan, and through this project's kernel otherwise.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/cudnn_attention.h"
#include "executor/kernel_table.h"

namespace autosp::cuda {

// The plans of one device and thread, and their workspace.
class AttentionPlans {
 public:
  AttentionPlans() = default;
  ~AttentionPlans();
  AttentionPlans(const AttentionPlans&) = delete;
  AttentionPlans& operator=(const AttentionPlans&) = delete;

  // Null where cuDNN has none.
  CudnnAttention* find(const AttentionShape& shape);
  // At least so many bytes, which stay until more are asked for.
  void* workspace(int64_t bytes);
  // Which shapes cuDNN has no plan for, or none that sums in a fixed order, and why.
  const std::vector<std::string>& notices() const { return notices_; }

 private:
  std::unique_ptr<CudnnAttention> make(AttentionShape shape);

  std::map<AttentionShape, std::unique_ptr<CudnnAttention>> plans_;
  void* workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
  std::vector<std::string> notices_;
};

std::span<const executor::KernelRow> cudnn_rows();

}  // namespace autosp::cuda
