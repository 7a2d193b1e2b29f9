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

  // Null where cuDNN has none, or the device no room for what it works in.
  CudnnAttention* find(const AttentionShape& shape);
  // What a plan of find() works in.
  void* workspace() const { return workspaces_.empty() ? nullptr : workspaces_.back(); }
  // Which shapes cuDNN has no plan for, or none that sums in a fixed order, and why.
  const std::vector<std::string>& notices() const { return notices_; }

 private:
  std::unique_ptr<CudnnAttention> make(const AttentionShape& shape);
  std::unique_ptr<CudnnAttention> plan(AttentionShape shape, const std::string& what,
                                       std::string& reason);
  bool has_room(int64_t bytes);

  std::map<AttentionShape, std::unique_ptr<CudnnAttention>> plans_;
  // One for all plans, the last of these: captured steps still work in the earlier ones.
  std::vector<void*> workspaces_;
  int64_t workspace_bytes_ = 0;
  std::vector<std::string> notices_;
};

std::span<const executor::KernelRow> cudnn_rows();

}  // namespace autosp::cuda
