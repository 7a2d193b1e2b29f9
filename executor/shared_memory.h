// Memory of one process that other processes of this machine read where it lies.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace autosp::executor {

// What a process has mapped and may tell others of. Nothing when `file` is negative.
struct SharedRegion {
  const std::byte* base = nullptr;
  int64_t bytes = 0;
  int file = -1;  // descriptor, in the process that owns it

  // Where `bytes_needed` from `data` on lie in the region, or -1 when they do not.
  int64_t offset_of(const void* data, int64_t bytes_needed) const;
};

// Another process's region, mapped for reading. Its pages count as resident here too once they have
// been read, and mapping a page costs about as much as copying it.
class PeerRegion {
 public:
  // At most about `most_resident` bytes of it stay mapped between reads. Nothing when that
  // process's descriptor cannot be reached from here.
  static std::optional<PeerRegion> map(pid_t owner, int file, int64_t bytes, int64_t most_resident);
  PeerRegion(PeerRegion&& other) noexcept;
  PeerRegion& operator=(PeerRegion&& other) noexcept;
  ~PeerRegion();

  const std::byte* at(int64_t offset) const { return base_ + offset; }

  // To be called after these bytes have been read.
  void note_read(int64_t offset, int64_t bytes);

 private:
  PeerRegion(std::byte* base, int64_t bytes, int64_t most_resident);

  std::byte* base_ = nullptr;
  int64_t bytes_ = 0;
  int64_t most_resident_ = 0;
  std::vector<bool> was_read_;  // by kChunk bytes
  int64_t chunks_read_ = 0;
};

}  // namespace autosp::executor
