// A chain's source as a whole program for CUDA: one kernel, `chain(Arguments)`.
#pragma once

#include <string>

namespace autosp::chains {

std::string device_text(const std::string& source);

}  // namespace autosp::chains
