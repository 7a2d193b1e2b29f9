#include "executor/shared_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace autosp::executor {

namespace {

// The system maps the pages around one that is asked for together with it, where they are there.
constexpr int64_t kMappedTogether = int64_t{64} << 10;

int64_t page_size() {
  static const auto size = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return size;
}

int64_t num_chunks(int64_t bytes) { return (bytes + kMappedTogether - 1) / kMappedTogether; }

}  // namespace

int64_t token_offset(int64_t bytes) {
  return (bytes + page_size() - 1) / page_size() * page_size();
}

int64_t file_bytes(int64_t bytes) { return token_offset(bytes) + page_size(); }

int64_t SharedRegion::offset_of(const void* data, int64_t bytes_needed) const {
  if (file < 0) return -1;
  const auto offset = static_cast<const std::byte*>(data) - base;
  return offset >= 0 && offset + bytes_needed <= bytes ? offset : -1;
}

namespace {

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

PeerRegion::PeerRegion(std::byte* base, int64_t bytes, OwnResidentPeak& resident)
    : base_(base),
      bytes_(bytes),
      resident_(&resident),
      is_mapped_(static_cast<size_t>(num_chunks(bytes))) {}

std::optional<PeerRegion> PeerRegion::map(pid_t owner, const SharedRegion& region,
                                          OwnResidentPeak& resident) {
  const int file = open_region(owner, region);
  if (file < 0) return std::nullopt;
  void* base = mmap(nullptr, static_cast<size_t>(region.bytes), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (base == MAP_FAILED) return std::nullopt;
  return PeerRegion(static_cast<std::byte*>(base), region.bytes, resident);
}

PeerRegion::PeerRegion(PeerRegion&& other) noexcept { *this = std::move(other); }

PeerRegion& PeerRegion::operator=(PeerRegion&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  std::swap(resident_, other.resident_);
  std::swap(is_mapped_, other.is_mapped_);
  std::swap(chunks_mapped_, other.chunks_mapped_);
  return *this;
}

PeerRegion::~PeerRegion() {
  if (base_ == nullptr) return;
  munmap(base_, static_cast<size_t>(bytes_));
  resident_->add_foreign(-chunks_mapped_ * kMappedTogether);
}

void PeerRegion::map_pages(int64_t offset, int64_t bytes) {
  AUTOSP_CHECK(offset >= 0 && bytes >= 0 && bytes <= bytes_ - offset);
  const auto chunks = std::ranges::subrange(is_mapped_.begin() + offset / kMappedTogether,
                                            is_mapped_.begin() + num_chunks(offset + bytes));
  const int64_t missing = std::ranges::count(chunks, false);
  if (bytes == 0 || missing == 0) return;
  resident_->add_foreign(missing * kMappedTogether);
  std::fill(chunks.begin(), chunks.end(), true);  // vector<bool> has no ranges to write to
  chunks_mapped_ += missing;

  std::byte* first = base_ + offset / page_size() * page_size();
  const auto size = static_cast<size_t>(base_ + offset + bytes - first);
  if (madvise(first, size, MADV_POPULATE_READ) == 0) return;
  for (size_t k = 0; k < size; k += static_cast<size_t>(page_size())) {
    static_cast<void>(static_cast<const volatile std::byte*>(first)[k]);
  }
}

}  // namespace autosp::executor
