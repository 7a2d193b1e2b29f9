#include "cuda/backend.h"

#include <cstdlib>

#include "cuda/attention.h"
#include "cuda/chain_kernels.h"
#include "cuda/device.h"
#include "cuda/kernels/rows.h"
#include "cuda/matmul.h"
#include "cuda/nccl.h"
#include "cuda/status.h"
#include "cuda/survey.h"

namespace autosp::cuda {

namespace {

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "counting devices");
  return count;
}

// Lets kernels on `device` read the other devices' memory; false where one cannot be.
bool reach_all(int device, int count) {
  check(cudaSetDevice(device), "choosing a device");
  for (int other = 0; other < count; ++other) {
    if (other == device) continue;
    int can = 0;
    check(cudaDeviceCanAccessPeer(&can, device, other), "asking about a device's neighbour");
    if (can == 0) return false;
    const cudaError_t status = cudaDeviceEnablePeerAccess(other, 0);
    if (status != cudaSuccess && status != cudaErrorPeerAccessAlreadyEnabled) return false;
    cudaGetLastError();
  }
  return true;
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "asking what a device is");
  return value;
}

// "sm_90"; empty where devices differ.
std::string architecture(int count) {
  std::string common;
  for (int device = 0; device < count; ++device) {
    const std::string own =
        fmt::format("sm_{}{}", attribute(cudaDevAttrComputeCapabilityMajor, device),
                    attribute(cudaDevAttrComputeCapabilityMinor, device));
    if (device > 0 && own != common) return "";
    common = own;
  }
  return common;
}

// The number of this process on its machine, as who started several says; -1 if it is one of none.
// srun says so to a single process too, whose ranks are threads.
int local_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"}) {
    if (const char* rank = std::getenv(name)) return std::atoi(rank);
  }
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  const char* rank = std::getenv("SLURM_LOCALID");
  return tasks != nullptr && std::atoi(tasks) > 1 && rank != nullptr ? std::atoi(rank) : -1;
}

class CudaBackend final : public executor::Backend {
 public:
  explicit CudaBackend(const executor::BackendOptions& options)
      : options_(options), count_(device_count()), chains_(architecture(count_)) {
    for (const executor::KernelRow& row : cublas_rows()) rows_.push_back(row);
    for (const executor::KernelRow& row : cudnn_rows()) rows_.push_back(row);
    for (const executor::KernelRow& row : kernels::own_rows()) rows_.push_back(row);
    rows_.push_back(chains::chain_row(make_chain));
    shares_ = count_ > 1 && local_rank() < 0;  // a process of many has one GPU
    for (int device = 0; device < count_ && shares_; ++device) shares_ = reach_all(device, count_);
  }

  std::string_view name() const override { return "CUDA"; }
  std::span<const executor::KernelRow> rows() const override { return rows_; }

  // Ranks of one process read each other's memory: they share the first GPU unless all reach all.
  std::unique_ptr<executor::Device> open(int rank) override {
    const int local = local_rank();
    const int device = local >= 0 ? local % count_ : shares_ ? rank % count_ : 0;
    return std::make_unique<CudaDevice>(device, options_, chains_);
  }

  std::unique_ptr<executor::Communicator> connect(executor::Device& device,
                                                  executor::Communicator& host,
                                                  std::string& notice) override {
    return make_nccl_communicator(static_cast<CudaDevice&>(device), host, notice);
  }

 private:
  static std::function<void(const executor::KernelCall&)> make_chain(
      const executor::Backend& backend, const ir::Graph& graph, const ir::Node& chain) {
    return chains::make_chain(static_cast<const CudaBackend&>(backend).chains_, graph, chain);
  }

  executor::BackendOptions options_;
  int count_;
  mutable ChainCompiler chains_;  // keeps what it has compiled
  bool shares_ = false;
  std::vector<executor::KernelRow> rows_;
};

}  // namespace

std::unique_ptr<executor::Backend> make_backend(const executor::BackendOptions& options) {
  const executor::DeviceSurvey found = survey();
  if (found.devices.empty()) {
    throw Error("there is no CUDA device: {}", found.reason)
        .note(fmt::format("built with {}; {}", found.toolkit,
                          found.driver.empty()
                              ? std::string("no driver library (libcuda.so.1) can be opened")
                              : "the driver runs CUDA up to " + found.driver))
        .help("run with --device cpu; 'autosp-onnx devices' shows what is there");
  }
  return std::make_unique<CudaBackend>(options);
}

}  // namespace autosp::cuda
