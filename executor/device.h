// What a rank can run on besides the CPU.
//
// A Backend is a kind of device ("cuda"): its kernels, and how a rank gets a Device, which is that
// rank's memory and its two streams. Work is queued on a stream and runs in the order of queueing;
// what two streams do is ordered by events alone. The executor does everything on a device through
// this interface, so that a device that only keeps records (test/support/emulated_device.h) can
// take the place of a real one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "executor/communicator.h"

namespace autosp::executor {

struct KernelRow;

// kCompute: kernels; kExchange: collectives.
enum class StreamId : uint8_t { kCompute, kExchange };

// A point on a stream that other streams, also those of other ranks' devices, can wait for.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
};

// Queued work that a device has kept, with the addresses that it was queued with. Ends before what
// it works on: memory, exchanges (NCCL's groups wait for its end), the device.
class CapturedStep {
 public:
  virtual ~CapturedStep() = default;
};

class Device {
 public:
  virtual ~Device() = default;

  // Device memory, aligned to 256 bytes. Throws Error where there is not enough.
  virtual std::byte* allocate(int64_t bytes) = 0;
  virtual void release(std::byte* memory) = 0;
  // Bytes of its memory that are free, and all of it.
  struct Memory {
    int64_t free = 0;
    int64_t total = 0;
  };
  virtual Memory memory() const = 0;

  // Zeros.
  virtual void clear(StreamId stream, std::byte* to, int64_t bytes) = 0;
  // Host memory to the device's; `from` may change once this returns.
  virtual void upload(StreamId stream, std::byte* to, const void* from, int64_t bytes) = 0;
  // The device's memory to the host's; returns when it is there.
  virtual void download(StreamId stream, void* to, const std::byte* from, int64_t bytes) = 0;

  virtual std::unique_ptr<DeviceEvent> make_event() = 0;
  virtual void record(StreamId stream, DeviceEvent& event) = 0;
  virtual void wait(StreamId stream, DeviceEvent& event) = 0;
  // Between two events that have come to pass.
  virtual double seconds_between(DeviceEvent& from, DeviceEvent& to) = 0;
  // Returns when both streams have nothing left to do. Throws Error for what went wrong in them.
  virtual void synchronize() = 0;

  // Box `from` of x to box `to` of y; x may be another rank's memory.
  virtual void copy_box(StreamId stream, size_t element_size, const ConstBuffer& x, const Box& from,
                        const Buffer& y, const Box& to) = 0;
  // The sum of box `box` of tensors of shape `shape`, in this order; 16-bit floats are summed as
  // float and rounded once. `out` may be one of the terms, where the box is all of them.
  virtual void sum_boxes(StreamId stream, ir::DataType dtype,
                         std::span<const std::byte* const> terms, const ir::Shape& shape,
                         const Box& box, std::byte* out) = 0;

  // A word of device memory, zero at first, into which kernels write the number of a node, counted
  // from 1, whose operands do not make sense (an index outside its axis, an integer divided by
  // zero).
  virtual int32_t* faults() = 0;

  // Keeps what `queue` queues, so that replay() queues it again at once. Nothing of it has run when
  // this returns. Null where that cannot be kept; then nothing was queued. Events that it records
  // and waits for may end before what is kept.
  virtual std::unique_ptr<CapturedStep> capture(const std::function<void()>& queue) = 0;
  virtual void replay(CapturedStep& step) = 0;

  // What the user should know of how it has run: what it could not do as it is meant to be done.
  virtual std::vector<std::string> notices() const { return {}; }
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;  // as messages have it: "CUDA"
  virtual std::span<const KernelRow> rows() const = 0;
  // What rank `rank` runs on: ranks are dealt out over the devices. Throws Error.
  virtual std::unique_ptr<Device> open(int rank) = 0;
  // Between the devices of all ranks of `host`, which must outlive it; null where the bytes have to
  // go through host memory. All ranks call this together. `notice`: why null, for the user.
  virtual std::unique_ptr<Communicator> connect(Device& device, Communicator& host,
                                                std::string& notice) = 0;
};

}  // namespace autosp::executor
