// What collectives do with device memory: moving and summing boxes of row-major tensors.
#pragma once

#include "cuda/kernels/launch.h"
#include "executor/communicator.h"

namespace autosp::kernels {

// As Device::copy_box and Device::sum_boxes (executor/device.h).
void copy_box(const Queue& queue, size_t element_size, const executor::ConstBuffer& x,
              const executor::Box& from, const executor::Buffer& y, const executor::Box& to);
void sum_boxes(const Queue& queue, ir::DataType dtype, std::span<const std::byte* const> terms,
               const ir::Shape& shape, const executor::Box& box, std::byte* out);

}  // namespace autosp::kernels
