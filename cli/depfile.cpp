#include "depfile.h"

namespace autosp::cli {

namespace {

std::string escaped(const std::filesystem::path& path) {
  std::string result;
  for (const char letter : path.string()) {
    if (letter == ' ' || letter == '#') result += '\\';
    if (letter == '$') result += '$';
    result += letter;
  }
  return result;
}

}  // namespace

std::string depfile_rule(const std::filesystem::path& target,
                         const std::vector<std::filesystem::path>& dependencies) {
  std::string rule = escaped(target) + ":";
  for (const std::filesystem::path& dependency : dependencies) {
    rule += " \\\n  " + escaped(dependency);
  }
  return rule + "\n";
}

}  // namespace autosp::cli
