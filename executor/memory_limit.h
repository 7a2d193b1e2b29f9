// How much memory this process may take.
#pragma once

#include <cstdint>
#include <filesystem>

namespace autosp::executor {

// The least of the machine's memory and the limits of the control groups that this process is in
// (versions 1 and 2, the groups around them included), bytes. `root` holds /proc and /sys.
int64_t usable_memory(const std::filesystem::path& root = "/");

}  // namespace autosp::executor
