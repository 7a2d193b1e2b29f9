// Arithmetic that 16-bit floats are too narrow for: sums, counts and divisions by them.
//
// A float16 sum overflows at 65504 and a bfloat16 one stops counting at 256, though the mean that
// is asked for fits well. Operators on 16-bit tensors compute in float32 and round once; what they
// are taken apart into has to do the same.
#pragma once

#include "ir/builder.h"

namespace autosp::transforms {

// The type to compute in: float32 for the 16-bit floats, any other type itself.
inline ir::DataType wide_type(ir::DataType dtype) {
  const bool narrow = dtype == ir::DataType::kFloat16 || dtype == ir::DataType::kBFloat16;
  return narrow ? ir::DataType::kFloat32 : dtype;
}

// x in the type to compute in.
inline ValueId widen(ir::Builder& build, ValueId x) {
  return build.cast(x, wide_type(build.dtype(x)));
}

// The name for the last step before a cast back to `dtype`: `name` when that cast is no node.
inline std::string name_before_rounding(ir::DataType dtype, const std::string& name) {
  return wide_type(dtype) == dtype ? name : std::string();
}

}  // namespace autosp::transforms
