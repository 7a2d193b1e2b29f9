#include "executor/shared_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <utility>

namespace autosp::executor {

int64_t SharedRegion::offset_of(const void* data, int64_t bytes_needed) const {
  if (file < 0) return -1;
  const auto offset = static_cast<const std::byte*>(data) - base;
  return offset >= 0 && offset + bytes_needed <= bytes ? offset : -1;
}

std::optional<PeerRegion> PeerRegion::map(pid_t owner, int file, int64_t bytes) {
  const int own = open(fmt::format("/proc/{}/fd/{}", owner, file).c_str(), O_RDONLY | O_CLOEXEC);
  if (own < 0) return std::nullopt;
  void* base = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, own, 0);
  close(own);
  if (base == MAP_FAILED) return std::nullopt;
  return PeerRegion(static_cast<std::byte*>(base), bytes);
}

PeerRegion::PeerRegion(PeerRegion&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), bytes_(other.bytes_) {}

PeerRegion& PeerRegion::operator=(PeerRegion&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PeerRegion::~PeerRegion() {
  if (base_ != nullptr) munmap(base_, static_cast<size_t>(bytes_));
}

void PeerRegion::forget(int64_t offset, int64_t bytes) const {
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  const int64_t begin = offset / page * page;
  madvise(base_ + begin, static_cast<size_t>(offset + bytes - begin), MADV_DONTNEED);
}

}  // namespace autosp::executor
