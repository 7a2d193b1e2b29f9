// NVRTC, which compiles the source of kernels while the program runs. It needs no GPU.
#pragma once

#include <string>
#include <vector>

namespace autosp::cuda {

// Machine code ("sm_90") or, for people to read, PTX ("compute_90") of a program without headers.
// Products and sums are not contracted, so that a sum of products is what two kernels would give.
// Throws Error: where NVRTC is not found, or with the first line that it says.
std::vector<char> compile(const std::string& text, const std::string& architecture);

}  // namespace autosp::cuda
