// How the kernels of this folder run.
//
// A kernel is a body: an object that is copied to the device and called there.
//
// - launch() calls body(i) for every element.
// - launch_rows() gives each row a block of kLanes threads, which call
//   body(row, lane, phase, shared) for one phase after the other.
// - launch_blocks() starts blocks of Body::kThreads threads and calls body(block) for each. What
//   the body does itself, all threads do alike; block.each() has each of them do something of its
//   own, with Body::Registers that are its own too.
//
// What a thread writes to `shared` in a phase, or in one each(), all threads of its block may read
// in the next. Nothing else passes between threads, so that the host runs the same bodies in loops
// (test/support/emulated_device.h).
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>

#include "cuda/kernels/elements.h"
#include "executor/device.h"
#include "executor/kernel_table.h"

#if defined(__CUDACC__)
#include "cuda/status.h"
#endif

namespace autosp::kernels {

struct Queue {
  executor::Device* device = nullptr;
  executor::StreamId stream = executor::StreamId::kCompute;
  explicit Queue(const executor::KernelCall& call) : device(call.device), stream(call.stream) {}
  Queue(executor::Device& on, executor::StreamId which) : device(&on), stream(which) {}
};

inline constexpr int kLanes = 128;

// Bytes of shared memory that a block may have: on Hopper, and on the least of the devices.
inline constexpr size_t kMostShared = size_t{227} << 10U;
size_t most_shared();

// What a thread of a block does; it may do without registers.
template <typename Work, typename Registers>
AUTOSP_DEVICE_ONLY void call(Work&& work, int thread, Registers& registers) {
  if constexpr (std::is_invocable_v<Work, int, Registers&>) {
    work(thread, registers);
  } else {
    work(thread);
  }
}

#if defined(__CUDACC__)

cudaStream_t stream_of(const Queue& queue);

inline constexpr int64_t kMostBlocks = 1 << 16;  // more elements or rows are taken in turn

template <typename Body>
__global__ void __launch_bounds__(kLanes) run_elements(const Body body, int64_t count) {
  const auto step = static_cast<int64_t>(gridDim.x) * kLanes;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLanes + threadIdx.x; i < count; i += step) {
    body(i);
  }
}

template <typename Body>
void launch(const Queue& queue, int64_t count, const Body& body) {
  if (count <= 0) return;
  const int64_t blocks = (count + kLanes - 1) / kLanes;
  run_elements<<<static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), kLanes, 0,
                 stream_of(queue)>>>(body, count);
  cuda::check(cudaGetLastError(), "starting a kernel");
}

template <typename Body>
__global__ void __launch_bounds__(kLanes) run_rows(const Body body, int64_t rows) {
  __shared__ typename Body::Shared shared;
  const int phases = body.phases();
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (int phase = 0; phase < phases; ++phase) {
      body(row, static_cast<int>(threadIdx.x), phase, shared);
      __syncthreads();
    }
  }
}

template <typename Body>
void launch_rows(const Queue& queue, int64_t rows, const Body& body) {
  if (rows <= 0) return;
  run_rows<<<static_cast<unsigned>(rows < kMostBlocks ? rows : kMostBlocks), kLanes, 0,
             stream_of(queue)>>>(body, rows);
  cuda::check(cudaGetLastError(), "starting a kernel");
}

// What a body sees of the block of threads that runs it.
template <typename Body>
class Block {
 public:
  using Shared = typename Body::Shared;
  using Registers = typename Body::Registers;

  __device__ Block(int64_t index, Shared& shared) : index_(index), shared_(shared) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  __device__ int64_t index() const { return index_; }
  __device__ Shared& shared() { return shared_; }
  // work(thread, registers), or work(thread), in every thread.
  template <typename Work>
  __device__ void each(Work&& work) {
    call(work, static_cast<int>(threadIdx.x), registers_);
    __syncthreads();
  }

 private:
  int64_t index_;
  Shared& shared_;
  Registers registers_;
};

template <typename Body>
__global__ void __launch_bounds__(Body::kThreads) run_blocks(const Body body) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block<Body> block(blockIdx.x, *reinterpret_cast<typename Body::Shared*>(shared));
  body(block);
}

template <typename Body>
void launch_blocks(const Queue& queue, int64_t blocks, const Body& body) {
  constexpr size_t kShared = sizeof(typename Body::Shared);
  static_assert(kShared <= kMostShared);
  if (blocks <= 0) return;
  AUTOSP_CHECK(blocks <= INT32_MAX, "a kernel of {} blocks", blocks);
  cuda::check(cudaFuncSetAttribute(run_blocks<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(kShared)),
              "asking for shared memory");
  run_blocks<<<static_cast<unsigned>(blocks), Body::kThreads, kShared, stream_of(queue)>>>(body);
  cuda::check(cudaGetLastError(), "starting a kernel");
}

#else

struct ThreadOrder {
  bool backwards = false;
  template <typename Index>
  Index nth(Index k, Index count) const {
    return backwards ? count - 1 - k : k;
  }
};

// Of the emulated device: runs `work` when its turn has come, for some order of the threads. What
// it gives must not depend on the order.
void enqueue(const Queue& queue, std::function<void(ThreadOrder)> work);

template <typename Body>
void launch(const Queue& queue, int64_t count, const Body& body) {
  enqueue(queue, [body, count](ThreadOrder order) {
    for (int64_t i = 0; i < count; ++i) body(order.nth(i, count));
  });
}

template <typename Body>
void launch_rows(const Queue& queue, int64_t rows, const Body& body) {
  enqueue(queue, [body, rows](ThreadOrder order) {
    const auto shared = std::make_unique<typename Body::Shared>();
    static_assert(std::is_trivially_copyable_v<typename Body::Shared>);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = order.nth(i, rows);
      std::memset(shared.get(), 0xCD, sizeof(typename Body::Shared));  // until it is written
      for (int phase = 0; phase < body.phases(); ++phase) {
        for (int lane = 0; lane < kLanes; ++lane) {
          body(row, order.nth(lane, kLanes), phase, *shared);
        }
      }
    }
  });
}

template <typename Body>
class Block {
 public:
  using Shared = typename Body::Shared;
  using Registers = typename Body::Registers;

  Block(int64_t index, ThreadOrder order)
      : index_(index),
        order_(order),
        shared_(std::make_unique<Shared>()),
        registers_(std::make_unique<Registers[]>(Body::kThreads)) {
    // Garbage until it is written.
    static_assert(std::is_trivially_copyable_v<Shared> && std::is_trivially_copyable_v<Registers>);
    std::memset(static_cast<void*>(shared_.get()), 0xCD, sizeof(Shared));
    std::memset(static_cast<void*>(registers_.get()), 0xCD, Body::kThreads * sizeof(Registers));
  }

  int64_t index() const { return index_; }
  Shared& shared() { return *shared_; }
  template <typename Work>
  void each(Work&& work) {
    for (int k = 0; k < Body::kThreads; ++k) {
      const int thread = order_.nth(k, Body::kThreads);
      call(work, thread, registers_[static_cast<size_t>(thread)]);
    }
  }

 private:
  int64_t index_;
  ThreadOrder order_;
  std::unique_ptr<Shared> shared_;
  std::unique_ptr<Registers[]> registers_;
};

template <typename Body>
void launch_blocks(const Queue& queue, int64_t blocks, const Body& body) {
  enqueue(queue, [body, blocks](ThreadOrder order) {
    for (int64_t i = 0; i < blocks; ++i) {
      Block<Body> block(order.nth(i, blocks), order);
      body(block);
    }
  });
}

#endif

}  // namespace autosp::kernels
