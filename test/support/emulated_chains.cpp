// The host's compiler makes a library of one function of a chain: it takes the rows in a loop, and
// the lanes of a row in another within each pass. Totals are combined in the order of a GPU.
#include "support/emulated_chains.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>

#include "base/error.h"
#include "ir/tensor.h"

namespace autosp::test {

namespace {

constexpr const char* kPrelude = R"(
#define AUTOSP_CHAIN inline

extern "C" {
float fabsf(float);
float expf(float);
float logf(float);
float sqrtf(float);
float tanhf(float);
float erff(float);
float sinf(float);
float cosf(float);
float powf(float, float);
// Set when the library is opened.
float (*float16_to_float)(unsigned short);
unsigned short (*float_to_float16)(float);
float (*bfloat16_to_float)(unsigned short);
unsigned short (*float_to_bfloat16)(float);
}

struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};
inline float widen(float x) { return x; }
inline float widen(float16 x) { return float16_to_float(x.bits); }
inline float widen(bfloat16 x) { return bfloat16_to_float(x.bits); }
template <typename T>
T narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline float16 narrow<float16>(float x) {
  return {float_to_float16(x)};
}
template <>
inline bfloat16 narrow<bfloat16>(float x) {
  return {float_to_bfloat16(x)};
}
)";

constexpr const char* kEntry = R"(
struct Row {
  const Arguments& args;
  bool backwards;
  int row;
  float totals[kLanes][kTotals + 1];

  int nth(int k, int count) const { return backwards ? count - 1 - k : k; }
  template <typename Pass>
  void pass() {
    for (int i = 0; i < kLanes; ++i) {
      const int lane = nth(i, kLanes);
      for (int k = Pass::kBegin; k < Pass::kEnd; ++k) totals[lane][k] = first_of(k);
      Pass::run(args, row, lane, totals[lane]);
    }
    for (int k = Pass::kBegin; k < Pass::kEnd; ++k) {
      const float all = of_all_lanes(k);
      for (int lane = 0; lane < kLanes; ++lane) totals[lane][k] = all;
    }
  }
  float of_all_lanes(int k) const {
    constexpr int kWidth = kLanes < 32 ? kLanes : 32;
    float all = 0;
    for (int warp = 0; warp < kLanes / kWidth; ++warp) {
      float values[kWidth];
      for (int i = 0; i < kWidth; ++i) values[i] = totals[warp * kWidth + i][k];
      for (int distance = kWidth / 2; distance > 0; distance /= 2) {
        for (int i = 0; i < distance; ++i) values[i] = combine(k, values[i], values[i + distance]);
      }
      all = warp == 0 ? values[0] : combine(k, all, values[0]);
    }
    return all;
  }
};

extern "C" void chain(const Arguments* args, bool backwards) {
  const int rows = static_cast<int>(args->rows);
  for (int k = 0; k < rows; ++k) {
    Row row = {*args, backwards};
    row.row = row.nth(k, rows);
    run_passes(row);
    for (int i = 0; i < kLanes; ++i) {
      const int lane = row.nth(i, kLanes);
      Results::run(*args, row.row, lane, row.totals[lane]);
    }
    if (kHasRowResults) RowResults::run(*args, row.row, row.totals[0]);
  }
}
)";

using Function = void (*)(const uint64_t* arguments, bool backwards);

template <typename Pointer>
void set(void* library, const char* name, Pointer value) {
  *static_cast<Pointer*>(dlsym(library, name)) = value;
}

// The library stays open for as long as the process runs.
Function open(const std::filesystem::path& file) {
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  AUTOSP_CHECK(library != nullptr, "{}", dlerror());
  set(library, "float16_to_float", &ir::float16_to_float);
  set(library, "float_to_float16", &ir::float_to_float16);
  set(library, "bfloat16_to_float", &ir::bfloat16_to_float);
  set(library, "float_to_bfloat16", &ir::float_to_bfloat16);
  return reinterpret_cast<Function>(dlsym(library, "chain"));
}

Function build(const std::string& text) {
  std::string folder = (std::filesystem::temp_directory_path() / "autosp-chain-XXXXXX").string();
  AUTOSP_CHECK(mkdtemp(folder.data()) != nullptr, "no folder {}", folder);
  const std::filesystem::path source = folder + "/chain.cpp";
  const std::filesystem::path library = folder + "/chain.so";
  std::ofstream(source) << text;
  // Without contraction of products and sums, as NVRTC is asked to.
  const int status = std::system(fmt::format("{} -std=c++17 -O1 -ffp-contract=off -fPIC -shared -w "
                                             "-o {} {}",
                                             AUTOSP_CXX_COMPILER, library.string(), source.string())
                                     .c_str());
  AUTOSP_CHECK(status == 0, "the host's compiler fails on\n{}", text);
  const Function function = open(library);
  std::filesystem::remove_all(folder);
  return function;
}

// Of all emulated devices of this process.
Function function_of(const std::string& text) {
  static std::mutex mutex;
  static std::map<std::string, Function> functions;
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = functions.try_emplace(text);
  if (is_new) entry->second = build(text);
  return entry->second;
}

class EmulatedChain final : public chains::Kernel {
 public:
  explicit EmulatedChain(Function function) : function_(function) {}
  void start(const kernels::Queue& queue, int64_t /*blocks*/, int /*threads*/,
             chains::Arguments arguments) const override {
    kernels::enqueue(
        queue, [function = function_, arguments = std::move(arguments)](
                   kernels::ThreadOrder order) { function(arguments.data(), order.backwards); });
  }

 private:
  Function function_;
};

}  // namespace

std::shared_ptr<const chains::Kernel> EmulatedChains::compile(const std::string& text) {
  if (!works_) throw Error("there is no compiler");
  return std::make_shared<EmulatedChain>(function_of(kPrelude + text + kEntry));
}

}  // namespace autosp::test
