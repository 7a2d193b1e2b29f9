// Reading another process's memory where it lies; here the other process is this one.
#include "executor/shared_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "executor/memory.h"

namespace autosp::executor {
namespace {

constexpr int64_t kMebibyte = int64_t{1} << 20;

// What /proc/self/status says of this process, bytes.
int64_t status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word != field + ":") continue;
    int64_t kibibytes = 0;
    status >> kibibytes;
    return kibibytes * 1024;
  }
  return -1;
}

// Pages of this process alone, resident from the beginning and gone at the end.
class OwnPages {
 public:
  explicit OwnPages(int64_t bytes) : size_(static_cast<size_t>(std::max<int64_t>(bytes, 1))) {
    pages_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    std::memset(pages_, 1, size_);
  }
  ~OwnPages() { munmap(pages_, size_); }
  OwnPages(const OwnPages&) = delete;
  OwnPages& operator=(const OwnPages&) = delete;

 private:
  size_t size_;
  void* pages_;
};

int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

void expect_about(int64_t value, int64_t expected) {
  constexpr int64_t kTolerance = 2 * kMebibyte;  // of the system's counters
  EXPECT_LE(std::abs(value - expected), kTolerance) << value << " for " << expected;
}

TEST(PeerRegion, MapsWhatIsReadOnce) {
  constexpr int64_t kBytes = 64 * kMebibyte;
  const Arena arena(kBytes, true);
  for (int64_t at = 0; at < kBytes; at += kMebibyte) {
    std::memset(arena.at(at), static_cast<int>(at / kMebibyte), kMebibyte);
  }
  OwnResidentPeak resident;
  auto peer = PeerRegion::map(getpid(), arena.region(), resident);
  ASSERT_TRUE(peer.has_value());
  const int64_t before = status_bytes("RssShmem");
  const auto read_every_other = [&] {
    for (int64_t at = 0; at < kBytes; at += 2 * kMebibyte) {
      peer->map_pages(at, kMebibyte);
      const std::byte* piece = peer->at(at);
      ASSERT_EQ(piece[0], static_cast<std::byte>(at / kMebibyte));
      ASSERT_EQ(piece[kMebibyte - 1], static_cast<std::byte>(at / kMebibyte));
    }
  };
  read_every_other();
  expect_about(status_bytes("RssShmem") - before, kBytes / 2);
  const int64_t faults = page_faults();
  read_every_other();
  EXPECT_LE(page_faults() - faults, 8);
}

TEST(OwnResidentPeak, LeavesOutWhatIsMappedOfOthers) {
  constexpr int64_t kBytes = 64 * kMebibyte;
  const Arena arena(kBytes, true);
  std::memset(arena.at(0), 1, kBytes);
  // Earlier tests may have set a mark above what is resident now.
  const OwnPages up_to_the_mark(resident_peak() - status_bytes("VmRSS"));
  const OwnPages above_it(kMebibyte);

  OwnResidentPeak resident;
  const int64_t alone = resident.bytes();
  expect_about(alone, resident_peak());
  {
    auto peer = PeerRegion::map(getpid(), arena.region(), resident);
    ASSERT_TRUE(peer.has_value());
    peer->map_pages(0, kBytes / 2);
    peer->map_pages(kBytes / 4, kBytes / 4);  // once more
    expect_about(resident_peak() - alone, kBytes / 2);
    expect_about(resident.bytes(), alone);

    const OwnPages own(kBytes / 4);
    peer->map_pages(kBytes / 4, kBytes / 4 * 3);
    expect_about(resident.bytes() - alone, kBytes / 4);
  }
  expect_about(resident.bytes() - alone, kBytes / 4);
  // Below the mark that foreign pages have set, what is there when it is asked for.
  const OwnPages half(kBytes / 2);
  expect_about(resident.bytes() - alone, kBytes / 2);
  const OwnPages twice(2 * kBytes);
  expect_about(resident.bytes() - alone, kBytes / 2 * 5);
}

TEST(PeerRegion, IsNothingWithoutADescriptor) {
  SharedRegion region{nullptr, kMebibyte, 1 << 20, {}};
  OwnResidentPeak resident;
  EXPECT_FALSE(PeerRegion::map(getpid(), region, resident).has_value());
}

// Under another process's number and descriptor there may be anything.
TEST(PeerRegion, IsNothingUnlessTheFileIsTheOneOffered) {
  const Arena arena(kMebibyte, true);
  const Arena another(kMebibyte, true);
  const Arena shorter(kMebibyte / 2, true);
  OwnResidentPeak resident;
  ASSERT_TRUE(PeerRegion::map(getpid(), arena.region(), resident).has_value());
  ASSERT_NE(arena.region().token, another.region().token);
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  for (int file : {another.region().file, shorter.region().file, pipe_ends[0], pipe_ends[1]}) {
    SharedRegion region = arena.region();
    region.file = file;
    EXPECT_FALSE(PeerRegion::map(getpid(), region, resident).has_value()) << file;
  }
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

TEST(Arena, KeepsItsTokenWhenPagesAreGivenBack) {
  Arena arena(kMebibyte + 100, true);
  std::memset(arena.at(0), 1, kMebibyte + 100);
  arena.keep_only({});
  OwnResidentPeak resident;
  EXPECT_TRUE(PeerRegion::map(getpid(), arena.region(), resident).has_value());
}

}  // namespace
}  // namespace autosp::executor
