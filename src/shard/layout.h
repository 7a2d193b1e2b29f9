// Where the elements of a value are.
//
// The ranks form a mesh; over each mesh axis a value is
//   replicated   every rank along the axis holds the same elements
//   split        along one atom of one dimension: the ranks hold consecutive index ranges
//   partial      every rank holds a term of a sum over the axis
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "ir/graph.h"
#include "shard/factors.h"

namespace autosp::shard {

// A mesh axis, outer to inner in a Mesh. The field's roles:
//   dp  data parallel: splits the batch
//   r   query positions: splits the sequence, and inside attention the queries (keys are whole)
//   g   head groups: splits the sequence, and query-head groups inside attention
//   u   Ulysses: splits the sequence, and KV heads inside attention
struct MeshAxis {
  std::string name;
  int64_t size = 1;
};

class Mesh {
 public:
  explicit Mesh(std::vector<MeshAxis> axes) : axes_(std::move(axes)) {}

  const std::vector<MeshAxis>& axes() const { return axes_; }
  size_t num_axes() const { return axes_.size(); }
  int64_t size() const;  // number of ranks
  // Coordinates of a rank, one per axis; the last axis varies fastest.
  std::vector<int64_t> coordinates(int64_t rank) const;
  std::string to_string() const;  // "dp 2 x g 2 x u 4"

 private:
  std::vector<MeshAxis> axes_;
};

// Cut points of an index range: shard k is [cuts[k], cuts[k + 1]).
using Cuts = std::vector<int64_t>;
Cuts even_cuts(int64_t extent, int64_t parts);  // the first extent % parts shards get one more

enum class Placement : uint8_t { kReplicated, kSplit, kPartial };

// Elements before and after a range.
struct Halo {
  int64_t before = 0;
  int64_t after = 0;
  bool operator==(const Halo&) const = default;
  auto operator<=>(const Halo&) const = default;
};

struct AxisLayout {
  Placement placement = Placement::kReplicated;
  AtomPosition position;  // kSplit
  // kSplit: cut points over this axis alone, or, when `nested`, over all sequence axes of the mesh
  // together (outer to inner): then the shard of a rank is the union over the sequence axes inside
  // this one that do not split the same atom.
  Cuts cuts;
  bool nested = false;
  // kSplit: what a shard holds of its neighbours' besides its own, so that shards overlap; only
  // what is exchanged for several windows at once does (transforms/spmd/halo_exchanges.h).
  Halo halo = {};

  static AxisLayout replicated() { return {}; }
  static AxisLayout partial() { return {.placement = Placement::kPartial}; }
  static AxisLayout split(AtomPosition at, Cuts cuts, bool nested) {
    return {
        .placement = Placement::kSplit, .position = at, .cuts = std::move(cuts), .nested = nested};
  }
  bool is_split() const { return placement == Placement::kSplit; }
  bool is_partial() const { return placement == Placement::kPartial; }
  bool is_replicated() const { return placement == Placement::kReplicated; }
  bool operator==(const AxisLayout&) const = default;
  auto operator<=>(const AxisLayout&) const = default;
};

// One entry per mesh axis.
using Layout = std::vector<AxisLayout>;

std::string to_string(const AxisLayout& layout);
std::string to_string(const Layout& layout, const Mesh& mesh);

// Bytes a rank sends to bring a value of `bytes` bytes from one layout to another over one axis of
// `ranks` ranks, when shards are even (the formulas of the design document). kImpossible for
// split -> partial. A re-cut (same atom, other cut points) costs what actually moves.
inline constexpr int64_t kImpossible = std::numeric_limits<int64_t>::max();
int64_t reshard_bytes(const AxisLayout& from, const AxisLayout& to, int64_t bytes, int64_t ranks);

struct Interval {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t extent() const { return end - begin; }
  bool operator==(const Interval&) const = default;
};

// The sequence axes of a mesh, outer to inner (all but dp).
std::vector<size_t> sequence_axes(const Mesh& mesh);

// The index range of one atom that a rank holds under a layout.
Interval local_range(const Layout& layout, const Mesh& mesh,
                     const std::vector<int64_t>& coordinates, AtomPosition position,
                     int64_t extent);

}  // namespace autosp::shard
