// A GPU as one rank sees it: its memory, two streams, a workspace for products of matrices.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <set>
#include <string>

#include "executor/device.h"
#include "executor/device_module.h"

namespace autosp::cuda {

class AttentionPlans;
class ChainCompiler;
class Matmul;

class CudaDevice final : public executor::Device {
 public:
  // `chains`: of its backend, which outlives it. Throws Error.
  CudaDevice(int ordinal, const executor::BackendOptions& options, const ChainCompiler& chains);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  int ordinal() const { return ordinal_; }
  const executor::BackendOptions& options() const { return options_; }
  cudaStream_t stream(executor::StreamId id) const { return streams_[static_cast<size_t>(id)]; }
  Matmul& matmul();
  AttentionPlans& attention();

  std::byte* allocate(int64_t bytes) override;
  void release(std::byte* memory) override;
  Memory memory() const override;
  void clear(executor::StreamId id, std::byte* to, int64_t bytes) override;
  void upload(executor::StreamId id, std::byte* to, const void* from, int64_t bytes) override;
  void download(executor::StreamId id, void* to, const std::byte* from, int64_t bytes) override;
  std::unique_ptr<executor::DeviceEvent> make_event() override;
  void record(executor::StreamId id, executor::DeviceEvent& event) override;
  void wait(executor::StreamId id, executor::DeviceEvent& event) override;
  double seconds_between(executor::DeviceEvent& from, executor::DeviceEvent& to) override;
  void synchronize() override;
  void copy_box(executor::StreamId id, size_t element_size, const executor::ConstBuffer& x,
                const executor::Box& from, const executor::Buffer& y,
                const executor::Box& to) override;
  void sum_boxes(executor::StreamId id, ir::DataType dtype, std::span<const std::byte* const> terms,
                 const ir::Shape& shape, const executor::Box& box, std::byte* out) override;
  int32_t* faults() override { return faults_; }
  std::unique_ptr<executor::CapturedStep> capture(const std::function<void()>& queue) override;
  void replay(executor::CapturedStep& step) override;
  std::vector<std::string> notices() const override;

 private:
  void fork_and_join(const std::function<void()>& queue);

  int ordinal_;
  executor::BackendOptions options_;
  const ChainCompiler& chains_;
  cudaStream_t streams_[2] = {};
  int32_t* faults_ = nullptr;
  std::set<std::string> not_kept_;  // why steps could not be captured
  std::unique_ptr<Matmul> matmul_;
  std::unique_ptr<AttentionPlans> attention_;
};

// The device of a kernel's call.
inline CudaDevice& device_of(executor::Device* device) { return static_cast<CudaDevice&>(*device); }

}  // namespace autosp::cuda
