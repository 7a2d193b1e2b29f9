// Memory of one process that other processes of this machine read where it lies.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "executor/resident.h"

namespace autosp::executor {

// Random bytes that tell one region's file from every other.
using RegionToken = std::array<uint64_t, 2>;

// Where a region's file holds its token: the first page after the region's own. The file ends with
// that page.
int64_t token_offset(int64_t bytes);
int64_t file_bytes(int64_t bytes);

// What a process has mapped and may tell others of. Nothing when `file` is negative.
struct SharedRegion {
  const std::byte* base = nullptr;
  int64_t bytes = 0;
  int file = -1;  // descriptor, in the process that owns it
  RegionToken token{};

  // Where `bytes_needed` from `data` on lie in the region, or -1 when they do not.
  int64_t offset_of(const void* data, int64_t bytes_needed) const;
};

// Another process's region, mapped for reading. Its pages stay mapped once they have been: mapping
// a page costs about as much as copying it.
class PeerRegion {
 public:
  // Nothing when the region's file cannot be reached from here, which its token tells: a process of
  // that number may be another one here (two containers or machines that share a name). `resident`,
  // which outlives this object, is told of the pages.
  static std::optional<PeerRegion> map(pid_t owner, const SharedRegion& region,
                                       OwnResidentPeak& resident);
  PeerRegion(PeerRegion&& other) noexcept;
  PeerRegion& operator=(PeerRegion&& other) noexcept;
  ~PeerRegion();

  const std::byte* at(int64_t offset) const { return base_ + offset; }
  // Maps these bytes' pages, which are to be read, at less cost than faults would.
  void map_pages(int64_t offset, int64_t bytes);

 private:
  PeerRegion(std::byte* base, int64_t bytes, OwnResidentPeak& resident);

  std::byte* base_ = nullptr;
  int64_t bytes_ = 0;
  OwnResidentPeak* resident_ = nullptr;
  std::vector<bool> is_mapped_;  // by kMappedTogether bytes
  int64_t chunks_mapped_ = 0;
};

}  // namespace autosp::executor
