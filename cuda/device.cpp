#include "cuda/device.h"

#include <algorithm>

#include "cuda/attention.h"
#include "cuda/chain_kernels.h"
#include "cuda/kernels/boxes.h"
#include "cuda/matmul.h"
#include "cuda/status.h"

namespace autosp::cuda {

using executor::DeviceEvent;
using executor::StreamId;

namespace {

class CudaEvent final : public DeviceEvent {
 public:
  CudaEvent() { check(cudaEventCreate(&event), "making an event"); }
  ~CudaEvent() override { cudaEventDestroy(event); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  cudaEvent_t event = nullptr;
};

cudaEvent_t of(DeviceEvent& event) { return static_cast<CudaEvent&>(event).event; }

class CudaGraph final : public executor::CapturedStep {
 public:
  explicit CudaGraph(cudaGraphExec_t executable) : graph(executable) {}
  ~CudaGraph() override { cudaGraphExecDestroy(graph); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  cudaGraphExec_t graph;
};

}  // namespace

CudaDevice::CudaDevice(int ordinal, const executor::BackendOptions& options,
                       const ChainCompiler& chains)
    : ordinal_(ordinal), options_(options), chains_(chains) {
  check(cudaSetDevice(ordinal_), "choosing a device");
  for (cudaStream_t& stream : streams_) {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  }
  check(cudaMalloc(reinterpret_cast<void**>(&faults_), sizeof(int32_t)), "taking memory");
  // On this stream: the others do not wait for what the default stream does.
  check(cudaMemsetAsync(faults_, 0, sizeof(int32_t), streams_[0]), "clearing memory");
  check(cudaStreamSynchronize(streams_[0]), "clearing memory");
}

CudaDevice::~CudaDevice() {
  attention_.reset();
  matmul_.reset();
  cudaFree(faults_);
  for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
}

Matmul& CudaDevice::matmul() {
  if (!matmul_) matmul_ = std::make_unique<Matmul>(options_.tf32);
  return *matmul_;
}

AttentionPlans& CudaDevice::attention() {
  if (!attention_) attention_ = std::make_unique<AttentionPlans>();
  return *attention_;
}

std::byte* CudaDevice::allocate(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const Memory there = this->memory();
    throw Error("device {} has no room for {} more", ordinal_,
                format_bytes(static_cast<double>(bytes)))
        .note(fmt::format("{} of its {} are free; a rank takes its arena, inputs and constants as "
                          "one piece",
                          format_bytes(static_cast<double>(there.free)),
                          format_bytes(static_cast<double>(there.total))))
        .help("shard over more ranks, or with --recompute budget=BYTES");
  }
  check(status, "taking memory");
  return static_cast<std::byte*>(memory);
}

void CudaDevice::release(std::byte* memory) { cudaFree(memory); }

CudaDevice::Memory CudaDevice::memory() const {
  size_t free = 0;
  size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for free memory");
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

void CudaDevice::clear(StreamId id, std::byte* to, int64_t bytes) {
  check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream(id)), "clearing memory");
}

// Where a GPU reads pageable memory itself, its bytes are taken when the copy runs, not before.
void CudaDevice::upload(StreamId id, std::byte* to, const void* from, int64_t bytes) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream(id)),
        "copying to the device");
  check(cudaStreamSynchronize(stream(id)), "waiting for a copy to the device");
}

void CudaDevice::download(StreamId id, void* to, const std::byte* from, int64_t bytes) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream(id)),
        "copying from the device");
  check(cudaStreamSynchronize(stream(id)), "waiting for a copy from the device");
}

std::unique_ptr<DeviceEvent> CudaDevice::make_event() { return std::make_unique<CudaEvent>(); }

void CudaDevice::record(StreamId id, DeviceEvent& event) {
  check(cudaEventRecord(of(event), stream(id)), "recording an event");
}

void CudaDevice::wait(StreamId id, DeviceEvent& event) {
  check(cudaStreamWaitEvent(stream(id), of(event), 0), "waiting for an event");
}

double CudaDevice::seconds_between(DeviceEvent& from, DeviceEvent& to) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, of(from), of(to)), "reading the time of events");
  return static_cast<double>(milliseconds) * 1e-3;
}

void CudaDevice::synchronize() {
  for (cudaStream_t stream : streams_) check(cudaStreamSynchronize(stream), "running kernels");
}

void CudaDevice::copy_box(StreamId id, size_t element_size, const executor::ConstBuffer& x,
                          const executor::Box& from, const executor::Buffer& y,
                          const executor::Box& to) {
  kernels::copy_box({*this, id}, element_size, x, from, y, to);
}

void CudaDevice::sum_boxes(StreamId id, ir::DataType dtype, std::span<const std::byte* const> terms,
                           const ir::Shape& shape, const executor::Box& box, std::byte* out) {
  kernels::sum_boxes({*this, id}, dtype, terms, shape, box, out);
}

// The exchange stream takes part in what is captured from the compute stream.
void CudaDevice::fork_and_join(const std::function<void()>& queue) {
  CudaEvent fork;
  CudaEvent join;
  record(StreamId::kCompute, fork);
  wait(StreamId::kExchange, fork);
  queue();
  record(StreamId::kExchange, join);
  wait(StreamId::kCompute, join);
}

std::unique_ptr<executor::CapturedStep> CudaDevice::capture(const std::function<void()>& queue) {
  const cudaStream_t compute = stream(StreamId::kCompute);
  std::string problem;
  check(cudaStreamBeginCapture(compute, cudaStreamCaptureModeThreadLocal), "capturing a step");
  cudaGraph_t graph = nullptr;
  // What a library refuses while it is captured may work when it is not: who queues it then is
  // told.
  try {
    fork_and_join(queue);
  } catch (const executor::Interrupted&) {  // another rank has failed
    cudaStreamEndCapture(compute, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  } catch (const Error& error) {
    problem = error.message();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  cudaGraphExec_t executable = nullptr;
  cudaError_t status = cudaStreamEndCapture(compute, &graph);
  if (status == cudaSuccess && problem.empty()) {
    status = cudaGraphInstantiate(&executable, graph, 0);
  }
  if (executable != nullptr) {  // there has to be room for it on the device
    status = cudaGraphUpload(executable, compute);
    if (status == cudaSuccess) status = cudaStreamSynchronize(compute);
    if (status != cudaSuccess) cudaGraphExecDestroy(executable);
  }
  if (status != cudaSuccess && problem.empty()) problem = cudaGetErrorString(status);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
  if (problem.empty()) return std::make_unique<CudaGraph>(executable);
  not_kept_.insert(problem);
  return nullptr;
}

void CudaDevice::replay(executor::CapturedStep& step) {
  check(cudaGraphLaunch(static_cast<CudaGraph&>(step).graph, stream(StreamId::kCompute)),
        "starting a captured step");
}

std::vector<std::string> CudaDevice::notices() const {
  std::vector<std::string> notices = chains_.notices();
  if (attention_) std::ranges::copy(attention_->notices(), std::back_inserter(notices));
  for (const std::string& problem : not_kept_) {
    notices.push_back("repeated steps are queued anew, not as one CUDA graph: " + problem);
  }
  return notices;
}

}  // namespace autosp::cuda

namespace autosp::kernels {

cudaStream_t stream_of(const Queue& queue) {
  return cuda::device_of(queue.device).stream(queue.stream);
}

size_t most_shared() {
  static const size_t kLeast = [] {
    int count = 0;
    cuda::check(cudaGetDeviceCount(&count), "counting devices");
    int least = static_cast<int>(kMostShared);
    for (int device = 0; device < count; ++device) {
      int bytes = 0;
      cuda::check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                  "asking for a block's memory");
      least = std::min(least, bytes);
    }
    return static_cast<size_t>(least);
  }();
  return kLeast;
}

}  // namespace autosp::kernels
