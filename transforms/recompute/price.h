// What executing an instruction takes on a device.
#pragma once

#include <vector>

#include "cost/device.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

// Seconds by instruction, on the first rank, which holds most.
std::vector<double> instruction_seconds(const SpmdProgram& program, const cost::Device& device);

}  // namespace autosp::transforms
