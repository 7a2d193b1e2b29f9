#include "shard/layout.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"

namespace autosp::shard {

int64_t Mesh::size() const {
  int64_t product = 1;
  for (const MeshAxis& axis : axes_) product *= axis.size;
  return product;
}

std::vector<int64_t> Mesh::coordinates(int64_t rank) const {
  std::vector<int64_t> result(axes_.size());
  for (size_t k = axes_.size(); k-- > 0;) {
    result[k] = rank % axes_[k].size;
    rank /= axes_[k].size;
  }
  return result;
}

std::string Mesh::to_string() const {
  std::vector<std::string> words;
  for (const MeshAxis& axis : axes_) words.push_back(fmt::format("{} {}", axis.name, axis.size));
  return fmt::format("{}", fmt::join(words, " x "));
}

Cuts even_cuts(int64_t extent, int64_t parts) {
  Cuts cuts = {0};
  for (int64_t k = 0; k < parts; ++k) {
    cuts.push_back(cuts.back() + extent / parts + (k < extent % parts ? 1 : 0));
  }
  return cuts;
}

std::string to_string(const AxisLayout& layout) {
  switch (layout.placement) {
    case Placement::kReplicated:
      return "replicated";
    case Placement::kPartial:
      return "partial";
    case Placement::kSplit:
      break;
  }
  const Halo none;
  return fmt::format("split(dim {}{}, cuts {}{})", layout.position.dim,
                     layout.position.atom == 0 ? "" : fmt::format(".{}", layout.position.atom),
                     fmt::join(layout.cuts, " "),
                     layout.halo == none
                         ? ""
                         : fmt::format(", halo {} {}", layout.halo.before, layout.halo.after));
}

std::string to_string(const Layout& layout, const Mesh& mesh) {
  std::vector<std::string> words;
  for (size_t k = 0; k < layout.size(); ++k) {
    words.push_back(fmt::format("{}: {}", mesh.axes()[k].name, to_string(layout[k])));
  }
  return fmt::format("{}", fmt::join(words, "; "));
}

int64_t reshard_bytes(const AxisLayout& from, const AxisLayout& to, int64_t bytes, int64_t ranks) {
  if (from == to || from.is_replicated()) return 0;
  // Products of bytes and extents exceed 64 bits at a million tokens.
  using Wide = __int128;
  const Wide total = bytes;
  const Wide others = ranks - 1;
  auto narrow = [](Wide value) { return static_cast<int64_t>(value); };
  if (from.is_partial()) {
    return narrow((to.is_replicated() ? 2 : 1) * total * others / ranks);
  }
  if (to.is_partial()) return kImpossible;
  if (to.is_replicated()) return narrow(total * others / ranks);
  if (from.position != to.position || from.cuts.size() != to.cuts.size()) {
    return narrow(total * others / (Wide{ranks} * ranks));
  }
  Wide moved = 0;
  for (size_t k = 0; k + 1 < to.cuts.size(); ++k) {
    const int64_t wanted = to.cuts[k + 1] - to.cuts[k];
    const int64_t kept =
        std::min(from.cuts[k + 1], to.cuts[k + 1]) - std::max(from.cuts[k], to.cuts[k]);
    moved += wanted - std::max<int64_t>(kept, 0);
  }
  // Per rank, rounded up so that moving anything is never free.
  const Wide extent = std::max<int64_t>(from.cuts.back(), 1);
  return narrow(total * moved / extent / static_cast<int64_t>(to.cuts.size() - 1) + 1);
}

std::vector<size_t> sequence_axes(const Mesh& mesh) {
  std::vector<size_t> axes;
  for (size_t k = 0; k < mesh.num_axes(); ++k) {
    if (mesh.axes()[k].name != "dp") axes.push_back(k);
  }
  return axes;
}

namespace {

// Without its halo.
Interval own_range(const Layout& layout, const Mesh& mesh, const std::vector<int64_t>& coordinates,
                   AtomPosition position, int64_t extent) {
  Interval result{0, extent};
  bool nested = false;
  for (size_t k = 0; k < layout.size(); ++k) {
    if (!layout[k].is_split() || layout[k].position != position) continue;
    if (layout[k].nested) {
      nested = true;
      continue;
    }
    const auto c = static_cast<size_t>(coordinates[k]);
    AUTOSP_CHECK(result.extent() == extent, "two axes split one atom without nesting");
    result = {layout[k].cuts[c], layout[k].cuts[c + 1]};
  }
  if (!nested) return result;
  // Leaves are numbered by the coordinates on all sequence axes, outer to inner; an axis that does
  // not split the atom contributes all its leaves, which must be inside of those that do.
  size_t first = 0;
  size_t count = 1;
  const Cuts* cuts = nullptr;
  for (size_t k : sequence_axes(mesh)) {
    const auto size = static_cast<size_t>(mesh.axes()[k].size);
    const bool splits = layout[k].is_split() && layout[k].nested && layout[k].position == position;
    if (splits) {
      AUTOSP_CHECK(count == 1, "an inner axis splits the sequence and an outer one does not");
      AUTOSP_CHECK(cuts == nullptr || *cuts == layout[k].cuts, "one atom, two sets of cut points");
      cuts = &layout[k].cuts;
      first = first * size + static_cast<size_t>(coordinates[k]);
    } else {
      first *= size;
      count *= size;
    }
  }
  AUTOSP_CHECK(first + count < cuts->size());
  return {(*cuts)[first], (*cuts)[first + count]};
}

}  // namespace

Interval local_range(const Layout& layout, const Mesh& mesh,
                     const std::vector<int64_t>& coordinates, AtomPosition position,
                     int64_t extent) {
  const Interval range = own_range(layout, mesh, coordinates, position, extent);
  Halo halo;
  for (const AxisLayout& axis : layout) {
    if (axis.is_split() && axis.position == position) halo = axis.halo;  // the same on all of them
  }
  return {std::max<int64_t>(range.begin - halo.before, 0),
          std::min(range.end + halo.after, extent)};
}

}  // namespace autosp::shard
