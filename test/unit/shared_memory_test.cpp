// Reading another process's memory where it lies; here the other process is this one.
#include "executor/shared_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "executor/memory.h"

namespace autosp::executor {
namespace {

constexpr int64_t kMebibyte = int64_t{1} << 20;

// Bytes of shared memory that count as resident in this process.
int64_t resident_shared() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word != "RssShmem:") continue;
    int64_t kibibytes = 0;
    status >> kibibytes;
    return kibibytes * 1024;
  }
  return -1;
}

TEST(PeerRegion, KeepsLittleOfWhatWasReadResident) {
  constexpr int64_t kBytes = 64 * kMebibyte;
  constexpr int64_t kWindow = 8 * kMebibyte;
  const Arena arena(kBytes, true);
  for (int64_t at = 0; at < kBytes; at += kMebibyte) {
    std::memset(arena.at(at), static_cast<int>(at / kMebibyte), kMebibyte);
  }
  auto peer = PeerRegion::map(getpid(), arena.region(), kWindow);
  ASSERT_TRUE(peer.has_value());
  const int64_t before = resident_shared();
  std::vector<std::byte> piece(kMebibyte);
  for (int64_t at = 0; at < kBytes; at += kMebibyte) {
    std::memcpy(piece.data(), peer->at(at), piece.size());
    peer->note_read(at, kMebibyte);
    ASSERT_EQ(piece.front(), static_cast<std::byte>(at / kMebibyte));
    ASSERT_EQ(piece.back(), static_cast<std::byte>(at / kMebibyte));
    EXPECT_LE(resident_shared() - before, kWindow + kMebibyte);
  }
  EXPECT_GT(resident_shared(), before) << "nothing stays mapped";
}

TEST(PeerRegion, IsNothingWithoutADescriptor) {
  SharedRegion region{nullptr, kMebibyte, 1 << 20, {}};
  EXPECT_FALSE(PeerRegion::map(getpid(), region, kMebibyte).has_value());
}

// Under another process's number and descriptor there may be anything.
TEST(PeerRegion, IsNothingUnlessTheFileIsTheOneOffered) {
  const Arena arena(kMebibyte, true);
  const Arena another(kMebibyte, true);
  const Arena shorter(kMebibyte / 2, true);
  ASSERT_TRUE(PeerRegion::map(getpid(), arena.region(), kMebibyte).has_value());
  ASSERT_NE(arena.region().token, another.region().token);
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  for (int file : {another.region().file, shorter.region().file, pipe_ends[0], pipe_ends[1]}) {
    SharedRegion region = arena.region();
    region.file = file;
    EXPECT_FALSE(PeerRegion::map(getpid(), region, kMebibyte).has_value()) << file;
  }
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

TEST(Arena, KeepsItsTokenWhenPagesAreGivenBack) {
  Arena arena(kMebibyte + 100, true);
  std::memset(arena.at(0), 1, kMebibyte + 100);
  arena.keep_only({});
  EXPECT_TRUE(PeerRegion::map(getpid(), arena.region(), kMebibyte).has_value());
}

}  // namespace
}  // namespace autosp::executor
