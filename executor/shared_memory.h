// Memory of one process that other processes of this machine read where it lies.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>

namespace autosp::executor {

// What a process has mapped and may tell others of. Nothing when `file` is negative.
struct SharedRegion {
  const std::byte* base = nullptr;
  int64_t bytes = 0;
  int file = -1;  // descriptor, in the process that owns it

  // Where `bytes_needed` from `data` on lie in the region, or -1 when they do not.
  int64_t offset_of(const void* data, int64_t bytes_needed) const;
};

// Another process's region, mapped for reading.
class PeerRegion {
 public:
  // Nothing when that process's descriptor cannot be reached from here.
  static std::optional<PeerRegion> map(pid_t owner, int file, int64_t bytes);
  PeerRegion(PeerRegion&& other) noexcept;
  PeerRegion& operator=(PeerRegion&& other) noexcept;
  ~PeerRegion();

  const std::byte* at(int64_t offset) const { return base_ + offset; }

  // Pages that have been read stop counting as resident in this process.
  void forget(int64_t offset, int64_t bytes) const;

 private:
  PeerRegion(std::byte* base, int64_t bytes) : base_(base), bytes_(bytes) {}

  std::byte* base_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace autosp::executor
