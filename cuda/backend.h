// GPUs as devices of the executor.
#pragma once

#include <memory>

#include "executor/device_module.h"

namespace autosp::cuda {

// Throws Error where there is no GPU.
std::unique_ptr<executor::Backend> make_backend(const executor::BackendOptions& options);

}  // namespace autosp::cuda
