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

namespace {

constexpr int64_t kChunk = int64_t{256} << 10;

}  // namespace

PeerRegion::PeerRegion(std::byte* base, int64_t bytes, int64_t most_resident)
    : base_(base),
      bytes_(bytes),
      most_resident_(most_resident),
      was_read_(static_cast<size_t>((bytes + kChunk - 1) / kChunk)) {}

std::optional<PeerRegion> PeerRegion::map(pid_t owner, int file, int64_t bytes,
                                          int64_t most_resident) {
  const int own = open(fmt::format("/proc/{}/fd/{}", owner, file).c_str(), O_RDONLY | O_CLOEXEC);
  if (own < 0) return std::nullopt;
  void* base = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, own, 0);
  close(own);
  if (base == MAP_FAILED) return std::nullopt;
  return PeerRegion(static_cast<std::byte*>(base), bytes, most_resident);
}

PeerRegion::PeerRegion(PeerRegion&& other) noexcept { *this = std::move(other); }

PeerRegion& PeerRegion::operator=(PeerRegion&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  std::swap(most_resident_, other.most_resident_);
  std::swap(was_read_, other.was_read_);
  std::swap(chunks_read_, other.chunks_read_);
  return *this;
}

PeerRegion::~PeerRegion() {
  if (base_ != nullptr) munmap(base_, static_cast<size_t>(bytes_));
}

void PeerRegion::note_read(int64_t offset, int64_t bytes) {
  for (int64_t k = offset / kChunk; k * kChunk < offset + bytes; ++k) {
    chunks_read_ += was_read_[static_cast<size_t>(k)] ? 0 : 1;
    was_read_[static_cast<size_t>(k)] = true;
  }
  if (chunks_read_ * kChunk <= most_resident_) return;
  madvise(base_, static_cast<size_t>(bytes_), MADV_DONTNEED);
  was_read_.assign(was_read_.size(), false);
  chunks_read_ = 0;
}

}  // namespace autosp::executor
