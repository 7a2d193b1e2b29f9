// Collectives between GPUs, one per rank.
#pragma once

#include <memory>
#include <string>

#include "cuda/device.h"

namespace autosp::cuda {

// All ranks of `host` call this together: it passes NCCL's identifiers on. Null, and `notice` says
// why, where NCCL is missing or ranks share a GPU.
std::unique_ptr<executor::Communicator> make_nccl_communicator(CudaDevice& device,
                                                               executor::Communicator& host,
                                                               std::string& notice);

}  // namespace autosp::cuda
