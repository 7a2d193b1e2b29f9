// From one layout of a value to another, in steps that one collective each can do.
#pragma once

#include <vector>

#include "shard/layout.h"

namespace autosp::transforms {

enum class StepKind : uint8_t {
  kSlice,          // every rank keeps a part of what it holds; nothing moves
  kKeepOnFirst,    // replicated -> partial: all ranks but the first hold zeros
  kAllToAll,       // split -> split, along another atom or at other cut points
  kAllGather,      // split -> replicated
  kReduceScatter,  // partial -> split
  kAllReduce,      // partial -> replicated
};

// "all-to-all", ...
std::string_view name_of(StepKind kind);
bool is_collective(StepKind kind);

struct ReshardStep {
  StepKind kind = StepKind::kSlice;
  std::vector<size_t> axes;  // of the mesh, outer to inner
  shard::Layout from;
  shard::Layout to;
};

// The cheapest order of per-axis changes in which every rank always holds one range of the
// sequence; neighbouring steps that move one value at one place are one step.
std::vector<ReshardStep> reshard_steps(const shard::Layout& from, const shard::Layout& to,
                                       const shard::Mesh& mesh);

// Bytes a rank sends for all steps, when shards are even; to compare sources.
int64_t estimated_bytes(const std::vector<ReshardStep>& steps, const shard::Mesh& mesh,
                        int64_t global_bytes);

// The ranks that take part in a step together with `rank`, ordered by their coordinates on its
// axes.
std::vector<int64_t> group_of(int64_t rank, const std::vector<size_t>& axes,
                              const shard::Mesh& mesh);

}  // namespace autosp::transforms
