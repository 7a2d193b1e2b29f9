#include "executor/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

namespace autosp::executor {

namespace {

constexpr size_t kHugeFrom = size_t{16} << 20;  // eight pages of x86's larger size

// A file in memory for a region of so many bytes and its token, or -1.
int make_shared_file(int64_t bytes, RegionToken& token) {
  const int file = memfd_create("autosp-onnx arena", MFD_CLOEXEC);
  if (file < 0) return -1;
  const auto size = static_cast<ssize_t>(sizeof(token));
  if (ftruncate(file, file_bytes(bytes)) == 0 &&
      getrandom(token.data(), sizeof(token), 0) == size &&
      pwrite(file, token.data(), sizeof(token), token_offset(bytes)) == size) {
    return file;
  }
  close(file);
  return -1;
}

}  // namespace

Arena::Arena(int64_t bytes, bool shared) : size_(static_cast<size_t>(std::max<int64_t>(bytes, 1))) {
  if (shared) file_ = make_shared_file(static_cast<int64_t>(size_), token_);
  const int kind = file_ >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  void* base = mmap(nullptr, size_, PROT_READ | PROT_WRITE, kind | MAP_NORESERVE, file_, 0);
  if (base == MAP_FAILED) {
    throw Error("the {} of memory that this run needs cannot be had: {}",
                format_bytes(static_cast<double>(bytes)), std::strerror(errno))
        .note("'plan' tells what a rank takes, and what for")
        .help("shard over more ranks, or for a shorter sequence");
  }
  base_ = static_cast<std::byte*>(base);
  // Fewer, larger pages where the system has them; it needs no more memory, as most of it is used.
  if (file_ < 0 && size_ >= kHugeFrom) madvise(base_, size_, MADV_HUGEPAGE);
}

Arena::~Arena() {
  munmap(base_, size_);
  if (file_ >= 0) close(file_);
}

SharedRegion Arena::region() const { return {base_, static_cast<int64_t>(size_), file_, token_}; }

int64_t Arena::touched_bytes() const {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((size_ + page - 1) / page);
  if (mincore(base_, size_, resident.data()) != 0) return 0;
  const auto pages = std::ranges::count_if(resident, [](unsigned char r) { return (r & 1U) != 0; });
  return static_cast<int64_t>(pages) * static_cast<int64_t>(page);
}

void Arena::keep_only(std::vector<Stretch> kept) {
  std::ranges::sort(kept, {}, &Stretch::offset);
  kept.push_back({static_cast<int64_t>(size_), 0});
  int64_t begin = 0;  // of what lies before the next stretch
  for (const Stretch& stretch : kept) {
    release({begin, stretch.offset - begin});
    begin = std::max(begin, stretch.offset + stretch.size);
  }
}

void Arena::release(Stretch stretch) {
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  const int64_t begin = (stretch.offset + page - 1) / page * page;
  const int64_t end = (stretch.offset + stretch.size) / page * page;
  // Shared pages belong to the file: only removing them from it frees them.
  const int advice = file_ >= 0 ? MADV_REMOVE : MADV_DONTNEED;
  if (end > begin) madvise(base_ + begin, static_cast<size_t>(end - begin), advice);
}

MappedFiles::~MappedFiles() {
  for (const auto& [location, file] : files_) {
    munmap(const_cast<std::byte*>(file.base), file.size);  // NOLINT: mmap's own type
  }
}

const MappedFiles::Mapping& MappedFiles::mapping(const ir::Value& value) {
  const std::string& location = value.external.location;
  const auto known = files_.find(location);
  if (known != files_.end()) return known->second;

  const std::filesystem::path path = folder_ / location;
  const auto fail = [&](int code) {
    return Error("the data of initializer \"{}\" cannot be read: {}: {}", value.name, path.string(),
                 std::strerror(code))
        .help("keep the external data files beside the model, or give their folder");
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw fail(errno);
  struct stat status {};
  fstat(file, &status);
  const auto size = static_cast<size_t>(status.st_size);
  void* base = size == 0 ? nullptr : mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  const int code = size == 0 ? ENODATA : errno;
  close(file);
  if (base == nullptr || base == MAP_FAILED) throw fail(code);
  return files_.emplace(location, Mapping{static_cast<const std::byte*>(base), size}).first->second;
}

const std::byte* MappedFiles::data(const ir::Value& value) {
  const Mapping& file = mapping(value);
  const int64_t offset = value.external.offset;
  const int64_t bytes = value.type.num_bytes();
  const auto size = static_cast<int64_t>(file.size);
  if (offset < 0 || offset > size || bytes > size - offset) {
    throw Error("initializer \"{}\" needs {} bytes from byte {} of {}, which has {}", value.name,
                bytes, offset, (folder_ / value.external.location).string(), file.size)
        .help("the file is truncated or belongs to another model");
  }
  const std::byte* at = file.base + offset;
  if (offset % static_cast<int64_t>(ir::element_size(value.type.dtype)) == 0) return at;
  ir::Tensor& copy = copies_[value.name];
  if (copy.dtype() == ir::DataType::kUndefined) {
    copy = ir::Tensor(value.type, {at, static_cast<size_t>(bytes)});
  }
  return copy.bytes().data();
}

}  // namespace autosp::executor
