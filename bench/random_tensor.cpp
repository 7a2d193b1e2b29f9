#include "random_tensor.h"

#include <algorithm>
#include <random>

namespace autosp::bench {

ir::Tensor random_tensor(const ir::Type& type, unsigned seed) {
  ir::Tensor wide({ir::DataType::kFloat32, type.shape});
  std::minstd_rand generator(seed);
  std::uniform_real_distribution<float> numbers(-1, 1);
  for (float& x : wide.mutable_values<float>()) x = numbers(generator);
  if (type.dtype == ir::DataType::kFloat32) return wide;
  ir::Tensor narrow(type);
  auto* bits = reinterpret_cast<uint16_t*>(narrow.mutable_bytes());
  std::ranges::transform(
      wide.values<float>(), bits,
      type.dtype == ir::DataType::kFloat16 ? ir::float_to_float16 : ir::float_to_bfloat16);
  return narrow;
}

}  // namespace autosp::bench
