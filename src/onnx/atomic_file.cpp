#include "onnx/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace autosp::onnx_io {

namespace {

[[noreturn]] void throw_system_error(const std::string& what) {
  throw Error("{}: {}", what, std::strerror(errno))
      .note("it is written under another name first, and renamed when it is complete")
      .help("check that the folder exists, is writable and has space");
}

void write_all(int file, std::string_view bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_system_error(fmt::format("cannot write '{}'", path.string()));
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::string temporary = path.string() + ".XXXXXX";
  const int file = ::mkstemp(temporary.data());
  if (file < 0) throw_system_error(fmt::format("cannot write '{}'", path.string()));
  try {
    write_all(file, bytes, path);
    const mode_t mask = ::umask(0);
    ::umask(mask);
    if (::fchmod(file, 0666 & ~mask) != 0 || ::fsync(file) != 0 ||
        ::rename(temporary.c_str(), path.c_str()) != 0) {
      throw_system_error(fmt::format("cannot write '{}'", path.string()));
    }
  } catch (...) {
    ::close(file);
    ::unlink(temporary.c_str());
    throw;
  }
  ::close(file);
}

}  // namespace autosp::onnx_io
