#include "executor/memory_limit.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace autosp::executor {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// "max", a missing file and what is not a number are no limit.
int64_t read_limit(const fs::path& file) {
  std::ifstream stream(file);
  int64_t limit = 0;
  return stream >> limit ? limit : kUnlimited;
}

// The least limit of a group and those around it. In a container the group's path may be the
// host's, of which only the innermost part is mounted here, as the root: missing folders are
// passed.
int64_t least_limit(const fs::path& mount, fs::path group, const char* file) {
  int64_t least = kUnlimited;
  for (group = group.relative_path();; group = group.parent_path()) {
    least = std::min(least, read_limit(mount / group / file));
    if (group.empty()) return least;
  }
}

}  // namespace

int64_t usable_memory(const fs::path& root) {
  const int64_t machine =
      static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  int64_t least = machine;
  const fs::path groups = root / "sys/fs/cgroup";
  std::ifstream list(root /
                     "proc/self/cgroup");  // "number:controllers:path", "0::path" of version 2
  for (std::string line; std::getline(list, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const std::string group = line.substr(second + 1);
    if (controllers == ",,") {
      least = std::min({least, least_limit(groups, group, "memory.max"),
                        least_limit(groups / "unified", group, "memory.max")});
    } else if (controllers.find(",memory,") != std::string::npos) {
      least = std::min(least, least_limit(groups / "memory", group, "memory.limit_in_bytes"));
    }
  }
  return least;
}

}  // namespace autosp::executor
