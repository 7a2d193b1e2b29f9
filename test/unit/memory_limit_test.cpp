#include "executor/memory_limit.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace autosp::executor {
namespace {

class UsableMemory : public testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::path(testing::TempDir()) /
            ("groups_" + std::to_string(::getpid()) +
             testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::filesystem::path& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
  }

  std::filesystem::path root_;
};

TEST_F(UsableMemory, IsTheMachinesWithoutGroups) {
  const int64_t machine = sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
  EXPECT_EQ(usable_memory(root_), machine);
  write("proc/self/cgroup", "0::/a");
  write("sys/fs/cgroup/a/memory.max", "max");
  EXPECT_EQ(usable_memory(root_), machine);
  write("sys/fs/cgroup/a/memory.max", "9223372036854771712");
  EXPECT_EQ(usable_memory(root_), machine);
}

TEST_F(UsableMemory, IsTheLeastOfAGroupAndThoseAroundIt) {
  write("proc/self/cgroup", "0::/slice/job/step");
  write("sys/fs/cgroup/slice/job/step/memory.max", "max");
  write("sys/fs/cgroup/slice/job/memory.max", "1000000");
  write("sys/fs/cgroup/slice/memory.max", "2000000");
  EXPECT_EQ(usable_memory(root_), 1000000);
  write("sys/fs/cgroup/slice/memory.max", "500000");
  EXPECT_EQ(usable_memory(root_), 500000);
}

// In a container the path is the host's and the group is mounted as the root.
TEST_F(UsableMemory, IsFoundAtTheRootOfAContainer) {
  write("proc/self/cgroup", "0::/docker/0123");
  write("sys/fs/cgroup/memory.max", "3000000");
  EXPECT_EQ(usable_memory(root_), 3000000);
}

TEST_F(UsableMemory, KnowsVersionOne) {
  write("proc/self/cgroup", "12:cpu,cpuacct:/x\n5:memory:/job/a\n0::/");
  write("sys/fs/cgroup/memory/job/a/memory.limit_in_bytes", "4000000");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(usable_memory(root_), 4000000);
}

}  // namespace
}  // namespace autosp::executor
