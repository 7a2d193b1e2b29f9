#include "executor/shared_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

namespace autosp::executor {

int64_t token_offset(int64_t bytes) {
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

int64_t file_bytes(int64_t bytes) {
  return token_offset(bytes) + static_cast<int64_t>(sysconf(_SC_PAGESIZE));
}

int64_t SharedRegion::offset_of(const void* data, int64_t bytes_needed) const {
  if (file < 0) return -1;
  const auto offset = static_cast<const std::byte*>(data) - base;
  return offset >= 0 && offset + bytes_needed <= bytes ? offset : -1;
}

namespace {

constexpr int64_t kChunk = int64_t{256} << 10;

// The region's file under that process's number, or -1. What is opened there may be anything: a
// shorter file, whose end must not be mapped, or a pipe, on which opening would wait.
int open_region(pid_t owner, const SharedRegion& region) {
  const std::string path = fmt::format("/proc/{}/fd/{}", owner, region.file);
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return -1;
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return -1;
  RegionToken token{};
  const bool same = fstat(file, &status) == 0 && status.st_size == file_bytes(region.bytes) &&
                    pread(file, token.data(), sizeof(token), token_offset(region.bytes)) ==
                        static_cast<ssize_t>(sizeof(token)) &&
                    token == region.token;
  if (same) return file;
  close(file);
  return -1;
}

}  // namespace

PeerRegion::PeerRegion(std::byte* base, int64_t bytes, int64_t most_resident)
    : base_(base),
      bytes_(bytes),
      most_resident_(most_resident),
      was_read_(static_cast<size_t>((bytes + kChunk - 1) / kChunk)) {}

std::optional<PeerRegion> PeerRegion::map(pid_t owner, const SharedRegion& region,
                                          int64_t most_resident) {
  const int file = open_region(owner, region);
  if (file < 0) return std::nullopt;
  void* base = mmap(nullptr, static_cast<size_t>(region.bytes), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (base == MAP_FAILED) return std::nullopt;
  return PeerRegion(static_cast<std::byte*>(base), region.bytes, most_resident);
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
