#include "cuda/chains/device_text.h"

namespace autosp::chains {

namespace {

// Without a header, which a machine may lack.
constexpr const char* kPrelude = R"(
#define AUTOSP_CHAIN __device__ __forceinline__

struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};
AUTOSP_CHAIN float widen(float x) { return x; }
AUTOSP_CHAIN float widen(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
AUTOSP_CHAIN float widen(bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
template <typename T>
AUTOSP_CHAIN T narrow(float x);
template <>
AUTOSP_CHAIN float narrow<float>(float x) {
  return x;
}
template <>
AUTOSP_CHAIN float16 narrow<float16>(float x) {
  float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
AUTOSP_CHAIN bfloat16 narrow<bfloat16>(float x) {
  bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

)";

// All lanes of a row get the same bits: in a warp both partners of an exchange add the same two
// numbers; warps are added in order by every thread.
constexpr const char* kEntry = R"(
AUTOSP_CHAIN float of_all_lanes(int total, float mine) {
#pragma unroll
  for (int distance = (kLanes < 32 ? kLanes : 32) / 2; distance > 0; distance /= 2) {
    mine = combine(total, mine, __shfl_xor_sync(0xFFFFFFFFU, mine, distance));
  }
  if (kLanes <= 32) return mine;
  __shared__ float of_warp[kLanes / 32 + 1];
  __syncthreads();  // the total before this one has been read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();
  float all = of_warp[0];
#pragma unroll
  for (int warp = 1; warp < kLanes / 32; ++warp) all = combine(total, all, of_warp[warp]);
  return all;
}

struct Row {
  const Arguments& args;
  int row;
  int lane;
  bool exists;  // lanes of none take part in what warps exchange
  float totals[kTotals + 1];

  template <typename Pass>
  AUTOSP_CHAIN void pass() {
#pragma unroll
    for (int k = Pass::kBegin; k < Pass::kEnd; ++k) totals[k] = first_of(k);
    if (exists) Pass::run(args, row, lane, totals);
#pragma unroll
    for (int k = Pass::kBegin; k < Pass::kEnd; ++k) totals[k] = of_all_lanes(k, totals[k]);
  }
};

extern "C" __global__ void __launch_bounds__(kLanes* kRowsPerBlock)
    chain(const __grid_constant__ Arguments args) {
  const long long step = static_cast<long long>(gridDim.x) * kRowsPerBlock;
  for (long long first = static_cast<long long>(blockIdx.x) * kRowsPerBlock; first < args.rows;
       first += step) {
    const long long number = first + threadIdx.x / kLanes;
    Row row = {args, static_cast<int>(number), static_cast<int>(threadIdx.x % kLanes),
               number < args.rows};
    run_passes(row);
    if (row.exists) Results::run(args, row.row, row.lane, row.totals);
    if (!kHasRowResults) continue;
    __syncthreads();  // what numbers of rows are written over has been read
    if (row.exists && row.lane == 0) RowResults::run(args, row.row, row.totals);
  }
}
)";

}  // namespace

std::string device_text(const std::string& source) { return kPrelude + source + kEntry; }

}  // namespace autosp::chains
