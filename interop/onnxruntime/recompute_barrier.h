// RecomputeBarrier(x, after) -> x, as a custom operator (transforms/recompute/barriers.h says why).
#pragma once

#include <charconv>
#include <string_view>
#include <system_error>

#include "onnxruntime/api.h"

namespace autosp::onnxruntime {

// Whether a runtime of this version ("1.21.1") takes the operator: before 1.22 an operator has one
// operand of any type at most. Those run the function of standard operators that rank graphs carry.
inline bool takes_recompute_barrier(std::string_view version) {
  int major = 0;
  int minor = 0;
  const char* end = version.data() + version.size();
  const auto first = std::from_chars(version.data(), end, major);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != '.') return false;
  if (std::from_chars(first.ptr + 1, end, minor).ec != std::errc()) return false;
  return major > 1 || (major == 1 && minor >= 22);
}

// For one session. `api` outlives it; the caller owns the operator.
const OrtCustomOp* make_recompute_barrier(const OrtApi& api);

}  // namespace autosp::onnxruntime
