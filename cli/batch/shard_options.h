// The options of `shard`, as `batch` hands them on.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace autosp::cli::batch {

enum class OptionKind : uint8_t {
  kFlag,    // takes no value
  kScalar,  // takes one
  kList,    // takes one at each occurrence
};

struct ShardOption {
  std::string name;  // without dashes
  OptionKind kind = OptionKind::kScalar;
  std::string help;
  std::string type;  // of the value, for --help
};

// All but those that name the result or change what is printed.
const std::vector<ShardOption>& shard_options();

// Null where `shard` has no such option, or `batch` does not hand it on.
const ShardOption* find_shard_option(const std::string& name);

// Throws Error when `shard` would refuse these arguments, before it looks at any file.
void check_arguments(const std::vector<std::string>& arguments, const std::string& origin);

}  // namespace autosp::cli::batch
