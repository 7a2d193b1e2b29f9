// Dependency files as make and ninja read them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace autosp::cli {

// "target: dependency dependency ...", with blanks, '$' and '#' in paths escaped.
std::string depfile_rule(const std::filesystem::path& target,
                         const std::vector<std::filesystem::path>& dependencies);

}  // namespace autosp::cli
