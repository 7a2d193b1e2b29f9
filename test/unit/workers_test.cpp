// Threads that the system refuses. What workers do otherwise:
// conformance/attention_kernels_test.cpp
#include "executor/workers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <fstream>

namespace autosp::executor {
namespace {

int64_t address_space() {
  std::ifstream status("/proc/self/statm");
  int64_t pages = 0;
  status >> pages;
  return pages * 4096;
}

// No more address space than now and `more`, until it goes.
class AddressSpaceLimit {
 public:
  explicit AddressSpaceLimit(int64_t more) {
    getrlimit(RLIMIT_AS, &before_);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(address_space() + more);
    setrlimit(RLIMIT_AS, &limit);
  }
  ~AddressSpaceLimit() { setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_{};
};

// Those that had started must not be waited for: they wait themselves.
TEST(Workers, RefusedThreadsAreAnError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need address space of their own";
#endif
  std::string message;
  {
    const AddressSpaceLimit limit(int64_t{100} << 20);  // stacks take 8 MiB each
    try {
      const Workers workers(500);
    } catch (const Error& error) {
      message = error.what();
    }
  }
  EXPECT_THAT(message, testing::HasSubstr("of the 500 of a rank cannot be started"));
  EXPECT_THAT(message, testing::HasSubstr("help: "));
}

}  // namespace
}  // namespace autosp::executor
