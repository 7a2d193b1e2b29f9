// Reading another process's memory where it lies; here the other process is this one.
#include "executor/shared_memory.h"

#include <gtest/gtest.h>
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

// Pages of this process alone; touched, so that they are resident.
std::vector<std::byte> touched(int64_t bytes) {
  return std::vector<std::byte>(static_cast<size_t>(std::max<int64_t>(bytes, 0)), std::byte{1});
}

constexpr int64_t kTolerance = kMebibyte;  // of the system's counters

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
  for (int64_t at = 0; at < kBytes; at += 2 * kMebibyte) {
    for (int time = 0; time < 2; ++time) {
      const std::byte* piece = peer->at(at, kMebibyte);
      ASSERT_EQ(piece[0], static_cast<std::byte>(at / kMebibyte));
      ASSERT_EQ(piece[kMebibyte - 1], static_cast<std::byte>(at / kMebibyte));
    }
  }
  EXPECT_NEAR(static_cast<double>(status_bytes("RssShmem") - before), kBytes / 2, 2 * kTolerance);
}

TEST(OwnResidentPeak, LeavesOutWhatIsMappedOfOthers) {
  constexpr int64_t kBytes = 64 * kMebibyte;
  const Arena arena(kBytes, true);
  std::memset(arena.at(0), 1, kBytes);
  // Earlier tests may have set a mark above what is resident now.
  const auto up_to_the_mark = touched(resident_peak() - status_bytes("VmRSS"));
  const auto above_it = touched(kMebibyte);

  OwnResidentPeak resident;
  const int64_t alone = resident.bytes();
  EXPECT_EQ(alone, resident_peak());
  {
    auto peer = PeerRegion::map(getpid(), arena.region(), resident);
    ASSERT_TRUE(peer.has_value());
    (void)peer->at(0, kBytes / 2);
    (void)peer->at(kBytes / 4, kBytes / 4);  // once more
    EXPECT_NEAR(static_cast<double>(resident_peak() - alone), kBytes / 2, kTolerance);
    EXPECT_NEAR(static_cast<double>(resident.bytes()), static_cast<double>(alone), kTolerance);

    const auto own = touched(kBytes / 4);
    (void)peer->at(kBytes / 2, kBytes / 2);
    EXPECT_NEAR(static_cast<double>(resident.bytes() - alone), kBytes / 4, kTolerance);
  }
  // What the process has of its own up to the old mark cannot be told from pages that are gone.
  EXPECT_NEAR(static_cast<double>(resident.bytes() - alone), kBytes / 4, kTolerance);
  const auto own = touched(2 * kBytes);
  EXPECT_NEAR(static_cast<double>(resident.bytes() - alone), 2 * kBytes, kTolerance);
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
