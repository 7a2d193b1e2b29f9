// What CUDA finds on this machine.
#pragma once

#include "executor/device_module.h"

namespace autosp::cuda {

executor::DeviceSurvey survey();

}  // namespace autosp::cuda
