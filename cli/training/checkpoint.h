// Whole parameters and optimizer state in a file per step, whatever they were sharded over.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "executor/npz.h"

namespace autosp::cli {

inline constexpr const char* kStepArray = "step";  // of a checkpoint: its number

// Before the first step: what cannot be written is told at once. Throws Error.
void make_checkpoint_folder(const std::filesystem::path& folder);

// FOLDER/step_00000012.npz: parameters by their names, state as "mean/NAME", and "step". Appears
// under its name when it is complete; the folder is made.
void write_checkpoint(const std::filesystem::path& folder, int64_t step, executor::Arrays whole);

struct Checkpoint {
  int64_t step = 0;
  std::filesystem::path file;
  executor::Arrays arrays;
};
std::optional<std::filesystem::path> latest_checkpoint_file(const std::filesystem::path& folder);
// The one of the latest step; nullopt when there is none. Throws Error for a file that is damaged.
std::optional<Checkpoint> latest_checkpoint(const std::filesystem::path& folder);

}  // namespace autosp::cli
