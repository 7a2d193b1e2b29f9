// For a factor class other than the sequence, the instructions that touch a value with one token
// dimension and that class, closed so that nothing leaves the region and comes back.
#include "transforms/tile/regions.h"

#include <algorithm>
#include <functional>

#include "base/error.h"

namespace autosp::transforms {

using shard::AtomPosition;
using shard::ClassId;

namespace {

// A region must be this much wider inside than at its border to be worth a loop.
constexpr double kLeastRatio = 3;

class RegionFinder {
 public:
  explicit RegionFinder(const SpmdProgram& program)
      : program_(program),
        analysis_(*program.plan->analysis),
        producer_(program.placed.size(), -1),
        readers_(program.placed.size()) {
    for (size_t k = 0; k < program.instructions.size(); ++k) {
      for (PlacedId id : operands_of(program.instructions[k])) readers_[id.index()].push_back(k);
      for (PlacedId id : results_of(program.instructions[k])) {
        producer_[id.index()] = static_cast<int>(k);
      }
    }
  }

  std::vector<Region> find() {
    std::vector<Region> found;
    for (const auto& [factor, members] : members_by_class()) {
      if (auto whole = region_of(members)) {
        found.push_back(std::move(*whole));
        continue;
      }
      for (bool forward : {true, false}) {
        std::vector<size_t> half;
        std::ranges::copy_if(members, std::back_inserter(half),
                             [&](size_t k) { return is_forward(k) == forward; });
        if (auto region = region_of(half)) found.push_back(std::move(*region));
      }
    }
    std::ranges::stable_sort(found, std::greater<>(), &Region::ratio);
    std::set<size_t> taken;
    std::erase_if(found, [&](const Region& region) {
      const bool overlaps =
          std::ranges::any_of(region.instructions, [&](size_t k) { return taken.contains(k); });
      if (!overlaps) taken.insert(region.instructions.begin(), region.instructions.end());
      return overlaps;
    });
    return found;
  }

 private:
  bool is_forward(size_t k) const { return phase_of(program_.instructions[k]) == Phase::kForward; }
  bool is_home(ClassId factor) const { return program_.plan->home.sequence.contains(factor); }

  // --- Candidates.

  std::map<ClassId, std::vector<size_t>> members_by_class() const {
    std::map<ClassId, std::vector<size_t>> result;
    for (size_t k = 0; k < program_.instructions.size(); ++k) {
      const auto* compute = std::get_if<Compute>(&program_.instructions[k]);
      if (compute == nullptr) continue;
      for (ClassId factor : classes_beside_tokens(compute->node)) result[factor].push_back(k);
    }
    return result;
  }

  std::set<ClassId> classes_beside_tokens(NodeId id) const {
    const ir::Node& node = program_.graph().node(id);
    std::set<ClassId> classes;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (node.inputs[k] && analysis_.node(id).is_data[k]) {
        add_classes(analysis_.operand_dims(id, k), classes);
      }
    }
    for (ValueId result : node.outputs) {
      if (result) add_classes(analysis_.dims(result), classes);
    }
    return classes;
  }

  void add_classes(const shard::DimAtoms& dims, std::set<ClassId>& classes) const {
    std::set<ClassId> others;
    int tokens = 0;
    for (const auto& dim : dims) {
      for (shard::AtomId atom : dim) {
        const ClassId factor = analysis_.class_of(atom);
        if (is_home(factor)) {
          ++tokens;
        } else if (!program_.plan->home.batch.contains(factor)) {
          others.insert(factor);
        }
      }
    }
    if (tokens == 1) classes.merge(others);
  }

  // --- One region.

  std::optional<Region> region_of(const std::vector<size_t>& members) const {
    if (members.empty()) return std::nullopt;
    Region region{.instructions = closed(members), .tokens = {}, .leaving = {}};
    for (size_t k : region.instructions) {
      if (!add_instruction(k, region)) return std::nullopt;
    }
    if (!measure(region) || region.ratio() < kLeastRatio) return std::nullopt;
    return region;
  }

  // With everything on a path between two members.
  std::vector<size_t> closed(const std::vector<size_t>& members) const {
    const size_t first = members.front();
    const size_t last = members.back();
    std::vector<bool> after(last - first + 1, false);
    std::vector<bool> before(last - first + 1, false);
    for (size_t k : members) after[k - first] = before[k - first] = true;
    for (size_t k = first; k <= last; ++k) {
      for (PlacedId id : operands_of(program_.instructions[k])) {
        const int made = producer_[id.index()];
        if (made >= static_cast<int>(first) && after[static_cast<size_t>(made) - first]) {
          after[k - first] = true;
        }
      }
    }
    for (size_t k = last + 1; k-- > first;) {
      for (PlacedId id : results_of(program_.instructions[k])) {
        for (size_t reader : readers_[id.index()]) {
          if (reader <= last && before[reader - first]) before[k - first] = true;
        }
      }
    }
    std::vector<size_t> result;
    for (size_t k = first; k <= last; ++k) {
      if (after[k - first] && before[k - first]) result.push_back(k);
    }
    return result;
  }

  // Whether the instruction computes every token on its own, or sums over tokens.
  bool add_instruction(size_t k, Region& region) const {
    const auto* compute = std::get_if<Compute>(&program_.instructions[k]);
    if (compute == nullptr) return false;
    const shard::NodeFactors& node = analysis_.node(compute->node);
    if (!node.opaque.empty()) return false;
    const shard::Factor* tokens = nullptr;
    for (const shard::Factor& factor : node.factors) {
      if (!is_home(analysis_.class_of(factor.atom))) continue;
      if (tokens != nullptr || factor.role == shard::Role::kCoupled || factor.window) return false;
      tokens = &factor;
    }
    if (tokens == nullptr) return false;
    for (size_t i = 0; i < compute->operands.size(); ++i) {
      if (compute->operands[i] && !place(compute->operands[i], tokens->operands[i], region)) {
        return false;
      }
    }
    for (size_t i = 0; i < compute->results.size(); ++i) {
      if (compute->results[i] && !place(compute->results[i], tokens->results[i], region)) {
        return false;
      }
    }
    return true;
  }

  bool place(PlacedId id, const std::optional<AtomPosition>& at, Region& region) const {
    const auto [known, is_new] = region.tokens.emplace(id, at);
    if (!is_new) return known->second == at;
    return at ? can_be_cut(program_.at(id).layout, *at) : !is_nested(program_.at(id).layout);
  }

  static bool is_nested(const shard::Layout& layout) {
    return std::ranges::any_of(layout,
                               [](const auto& axis) { return axis.is_split() && axis.nested; });
  }

  // All sequence axes split the tokens, or none does.
  bool can_be_cut(const shard::Layout& layout, AtomPosition at) const {
    size_t splitting = 0;
    const auto axes = shard::sequence_axes(program_.plan->mesh);
    for (size_t axis : axes) {
      if (!layout[axis].is_split() || layout[axis].position != at) continue;
      if (!layout[axis].nested) return false;
      ++splitting;
    }
    return splitting == 0 || splitting == axes.size();
  }

  // False when something inside reads a sum over tokens, which is complete only after the loop.
  bool measure(Region& region) const {
    const std::set<size_t> own(region.instructions.begin(), region.instructions.end());
    for (const auto& [id, at] : region.tokens) {
      const auto& readers = readers_[id.index()];
      const bool made_inside =
          producer_[id.index()] >= 0 && own.contains(static_cast<size_t>(producer_[id.index()]));
      const bool read_inside =
          std::ranges::any_of(readers, [&](size_t k) { return own.contains(k); });
      const bool read_outside =
          std::ranges::any_of(readers, [&](size_t k) { return !own.contains(k); }) ||
          std::ranges::find(program_.outputs, id) != program_.outputs.end();
      if (!at && made_inside && read_inside) return false;
      if (made_inside && read_outside) region.leaving.insert(id);
      if (!at || program_.is_constant(id)) continue;
      (made_inside && !read_outside ? region.inside : region.edge) += bytes(id);
    }
    return true;
  }

  int64_t bytes(PlacedId id) const {
    const Placed& placed = program_.at(id);
    const ir::DataType dtype = program_.graph().type(placed.value).dtype;
    return ir::num_elements(local_shape(placed, program_.plan->mesh, 0)) *
           static_cast<int64_t>(ir::element_size(dtype));
  }

  const SpmdProgram& program_;
  const shard::FactorAnalysis& analysis_;
  std::vector<int> producer_;                 // by placed value
  std::vector<std::vector<size_t>> readers_;  // by placed value
};

}  // namespace

std::vector<Region> find_regions(const SpmdProgram& program) {
  return RegionFinder(program).find();
}

}  // namespace autosp::transforms
