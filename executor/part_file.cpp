#include "executor/part_file.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/error.h"

namespace autosp::executor {

PartFile::PartFile(std::filesystem::path target)
    : target_(std::move(target)), part_(fmt::format("{}.{}.part", target_.string(), ::getpid())) {
  std::error_code ignored;
  std::filesystem::remove(part_, ignored);
}

PartFile::~PartFile() {
  std::error_code ignored;
  std::filesystem::remove(part_, ignored);
}

void PartFile::commit() {
  // Its name must not get to the disk before what it names.
  if (const int file = ::open(part_.c_str(), O_RDONLY | O_CLOEXEC); file >= 0) {
    ::fsync(file);
    ::close(file);
  }
  std::error_code code;
  std::filesystem::rename(part_, target_, code);
  if (code) refuse(code.message());
}

void PartFile::refuse(const std::string& reason) const {
  throw Error("'{}' cannot be written: {}", target_.string(), reason)
      .note("it is written under another name first, which is removed again")
      .help("name a file in a folder that exists and that you may write to, on a disk with room");
}

}  // namespace autosp::executor
