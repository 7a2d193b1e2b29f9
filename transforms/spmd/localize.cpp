#include "transforms/spmd/localize.h"

#include <algorithm>
#include <functional>
#include <map>
#include <unordered_map>

#include "base/error.h"
#include "ir/operator_traits.h"

namespace autosp::transforms {

using shard::Interval;

namespace {

// The range of a dimension of these atoms, major to minor, of which a rank has `parts`; nullopt
// where a minor one is split.
std::optional<Interval> flat_range(const std::vector<Interval>& parts,
                                   const std::vector<int64_t>& atoms) {
  Interval found{0, 1};
  for (size_t a = parts.size(); a-- > 0;) {
    if (a > 0 && parts[a] != Interval{0, atoms[a]}) return std::nullopt;
    found = {parts[a].begin * found.extent(), parts[a].end * found.extent()};
  }
  return found;
}

// One node being bound to one rank.
class LocalNode {
 public:
  LocalNode(const SpmdProgram& program, const Compute& compute, int64_t rank,
            const std::vector<ValueId>& operands, ir::Builder& build)
      : program_(program),
        graph_(program.graph()),
        compute_(compute),
        node_(graph_.node(compute.node)),
        rank_(rank),
        operands_(operands),
        build_(build) {}

  const ir::Node& node() const { return node_; }
  ir::Shape result_shape(size_t k) const {
    return local_shape(program_.at(compute_.results[k]), program_.plan->mesh, rank_);
  }

  // The operands as the rank's node takes them: data as given, the rest as in the original.
  std::vector<ValueId> default_operands() {
    std::vector<ValueId> result;
    for (size_t k = 0; k < node_.inputs.size(); ++k) {
      if (!node_.inputs[k] || operands_[k]) {
        result.push_back(operands_[k]);
        continue;
      }
      AUTOSP_CHECK(graph_.is_constant(node_.inputs[k]),
                   "{}: operand {} is neither data nor constant", graph_.describe(node_), k);
      result.push_back(
          build_.constant(graph_.constant(node_.inputs[k]), graph_.name_of(node_.inputs[k])));
    }
    return result;
  }

  ValueId shape_operand(const ir::Shape& shape) { return build_.int64s(shape); }
  ir::Builder& build() { return build_; }

  // The rank's index range along dimension d of operand 0 and of result 0, which is whole where a
  // minor atom is split.
  Interval operand_range(size_t d) const {
    return range(program_.at(compute_.operands[0]), d, graph_.shape(node_.inputs[0])[d]);
  }
  Interval result_range(size_t d) const {
    return range(program_.at(compute_.results[0]), d, graph_.shape(node_.outputs[0])[d]);
  }
  int64_t local_operand_extent(size_t d) const {
    return local_shape(program_.at(compute_.operands[0]), program_.plan->mesh, rank_)[d];
  }
  int64_t local_result_extent(size_t d) const { return result_shape(0)[d]; }
  bool operand_is_split(size_t d) const { return is_split(program_.at(compute_.operands[0]), d); }
  bool result_is_split(size_t d) const { return is_split(program_.at(compute_.results[0]), d); }

  std::optional<reference::AttentionDropout> dropout() const {
    return local_dropout(program_, compute_, rank_);
  }

  const ir::Graph& graph() const { return graph_; }
  // The rank's ranges of the atoms of result 0's dimension d.
  std::vector<Interval> result_atoms(size_t d) const {
    return local_ranges(program_.at(compute_.results[0]), program_.plan->mesh, rank_)[d];
  }
  // Extents of the atoms of result 0's dimension d in the whole.
  const std::vector<int64_t>& whole_atoms(size_t d) const {
    return program_.at(compute_.results[0]).atoms[d];
  }

 private:
  Interval range(const Placed& placed, size_t d, int64_t extent) const {
    const auto parts = local_ranges(placed, program_.plan->mesh, rank_)[d];
    return flat_range(parts, placed.atoms[d]).value_or(Interval{0, extent});
  }
  static bool is_split(const Placed& placed, size_t d) {
    return std::ranges::any_of(placed.layout, [d](const auto& axis) {
      return axis.is_split() && axis.position.dim == static_cast<int>(d);
    });
  }

  const SpmdProgram& program_;
  const ir::Graph& graph_;
  const Compute& compute_;
  const ir::Node& node_;
  int64_t rank_;
  const std::vector<ValueId>& operands_;
  ir::Builder& build_;
};

// What a rank's form of an operator changes: its non-data operands, its name, its attributes.
struct LocalForm {
  std::string op;
  std::vector<ValueId> operands;
  ir::Attributes attributes;
};
using Localizer = std::function<LocalForm(LocalNode&)>;

LocalForm local_view(LocalNode& local) {
  return {"Reshape",
          {local.default_operands()[0], local.shape_operand(local.result_shape(0))},
          {{"allowzero", int64_t{1}}}};
}

LocalForm local_expand(LocalNode& local) {
  return {"Expand", {local.default_operands()[0], local.shape_operand(local.result_shape(0))}, {}};
}

LocalForm local_fill(LocalNode& local) {
  return {"ConstantOfShape", {local.shape_operand(local.result_shape(0))}, local.node().attributes};
}

LocalForm local_tile(LocalNode& local) {
  std::vector<int64_t> repeats;
  for (size_t d = 0; d < local.graph().shape(local.node().outputs[0]).size(); ++d) {
    const int64_t in = local.local_operand_extent(d);
    repeats.push_back(in == 0 ? 1 : local.local_result_extent(d) / in);
  }
  return {"Tile", {local.default_operands()[0], local.shape_operand(repeats)}, {}};
}

LocalForm local_split(LocalNode& local) {
  const size_t rank = local.graph().shape(local.node().inputs[0]).size();
  const size_t axis = ir::normalize_axis(local.node().attributes.get_int("axis", 0), rank);
  std::vector<int64_t> sizes;
  for (size_t k = 0; k < local.node().outputs.size(); ++k)
    sizes.push_back(local.result_shape(k)[axis]);
  return {"Split",
          {local.default_operands()[0], local.shape_operand(sizes)},
          {{"axis", static_cast<int64_t>(axis)}}};
}

// Window bounds of the original along each axis: result index r reads operand index r + offset.
std::vector<int64_t> slice_offsets(const LocalNode& local) {
  const ir::Node& node = local.node();
  const ir::Graph& graph = local.graph();
  const ir::Shape& in = graph.shape(node.inputs[0]);
  const auto begins = *graph.constant_ints(node.inputs[1]);
  const auto axes = graph.constant_ints(node.input(3));
  std::vector<int64_t> offsets(in.size(), 0);
  for (size_t k = 0; k < begins.size(); ++k) {
    const size_t axis = axes ? ir::normalize_axis((*axes)[k], in.size()) : k;
    offsets[axis] =
        std::clamp<int64_t>(begins[k] < 0 ? begins[k] + in[axis] : begins[k], 0, in[axis]);
  }
  return offsets;
}

// Bounds of the original along an axis that it takes steps on; such an axis is whole on every rank.
struct SteppedBounds {
  int64_t begin;
  int64_t end;
  int64_t step;
};

std::map<size_t, SteppedBounds> stepped_axes(const LocalNode& local) {
  const ir::Node& node = local.node();
  const ir::Graph& graph = local.graph();
  std::map<size_t, SteppedBounds> result;
  const auto steps = graph.constant_ints(node.input(4));
  if (!steps) return result;
  const auto begins = *graph.constant_ints(node.input(1));
  const auto ends = *graph.constant_ints(node.input(2));
  const auto axes = graph.constant_ints(node.input(3));
  const size_t rank = graph.shape(node.inputs[0]).size();
  for (size_t k = 0; k < steps->size(); ++k) {
    if ((*steps)[k] == 1) continue;
    result[axes ? ir::normalize_axis((*axes)[k], rank) : k] = {begins[k], ends[k], (*steps)[k]};
  }
  return result;
}

LocalForm local_slice(LocalNode& local) {
  const ir::Node& node = local.node();
  const ir::Shape& in = local.graph().shape(node.inputs[0]);
  const ir::Shape& out = local.graph().shape(node.outputs[0]);
  const auto offsets = slice_offsets(local);
  const auto stepped = stepped_axes(local);
  std::vector<int64_t> begins;
  std::vector<int64_t> ends;
  std::vector<int64_t> axes;
  std::vector<int64_t> steps;
  const auto cut_axis = [&](size_t d, SteppedBounds bounds) {
    begins.push_back(bounds.begin);
    ends.push_back(bounds.end);
    axes.push_back(static_cast<int64_t>(d));
    steps.push_back(bounds.step);
  };
  for (size_t d = 0; d < in.size(); ++d) {
    if (const auto found = stepped.find(d); found != stepped.end()) {
      cut_axis(d, found->second);
      continue;
    }
    if (in[d] == out[d] && offsets[d] == 0) continue;
    int64_t begin = offsets[d];
    int64_t extent = out[d];
    if (local.result_is_split(d)) {
      const Interval result = local.result_range(d);
      begin = result.begin + offsets[d] - local.operand_range(d).begin;
      extent = result.extent();
      if (extent == 0) begin = 0;
    }
    cut_axis(d, {begin, begin + extent, 1});
  }
  if (axes.empty()) return {"Identity", {local.default_operands()[0]}, {}};
  LocalForm form{"Slice",
                 {local.default_operands()[0], local.shape_operand(begins),
                  local.shape_operand(ends), local.shape_operand(axes)},
                 {}};
  if (!stepped.empty()) form.operands.push_back(local.shape_operand(steps));
  return form;
}

LocalForm local_pad(LocalNode& local) {
  const ir::Node& node = local.node();
  auto pads = *local.graph().constant_ints(node.inputs[1]);
  const size_t rank = pads.size() / 2;
  for (size_t d = 0; d < rank; ++d) {
    if (!local.result_is_split(d) || (pads[d] == 0 && pads[d + rank] == 0)) continue;
    const Interval operand = local.operand_range(d);
    const Interval result = local.result_range(d);
    const int64_t before = operand.begin + pads[d] - result.begin;
    const int64_t after = result.end - (operand.end + pads[d]);
    const bool empty = operand.extent() == 0;
    pads[d] = empty ? result.extent() : before;
    pads[d + rank] = empty ? 0 : after;
  }
  std::vector<ValueId> operands = local.default_operands();
  operands[1] = local.shape_operand(pads);
  return {"Pad", std::move(operands), node.attributes};
}

// The whole range, of which the rank keeps its part: a range is cheap. A dimension of several atoms
// is split at its major one only.
LocalForm local_range_op(LocalNode& local) {
  const ir::Node& node = local.node();
  const ValueId whole =
      local.build().node("Range", local.default_operands(), local.graph().type(node.outputs[0]));
  const auto part = flat_range(local.result_atoms(0), local.whole_atoms(0));
  AUTOSP_CHECK(part.has_value(), "{}", local.graph().describe(node));
  return {"Slice",
          {whole, local.shape_operand({part->begin}), local.shape_operand({part->end}),
           local.shape_operand({0})},
          {}};
}

// The rank's part, as a box of the atoms' extents: a split atom need not be a dimension's major
// one.
LocalForm local_draw(LocalNode& local) {
  std::vector<int64_t> whole;
  std::vector<int64_t> begin;
  std::vector<int64_t> extent;
  const ir::Shape shape = local.result_shape(0);
  for (size_t d = 0; d < shape.size(); ++d) {
    const auto atoms = local.result_atoms(d);
    for (size_t a = 0; a < atoms.size(); ++a) {
      whole.push_back(local.whole_atoms(d)[a]);
      begin.push_back(atoms[a].begin);
      extent.push_back(atoms[a].extent());
    }
  }
  ir::Attributes attributes = local.node().attributes;
  attributes.set("shape", shape);
  attributes.set("whole", std::move(whole));
  attributes.set("begin", std::move(begin));
  attributes.set("extent", std::move(extent));
  return {"RandomUniform", local.default_operands(), std::move(attributes)};
}

// Attention that drops weights: the rank's first weight has another number.
LocalForm local_attention(LocalNode& local) {
  LocalForm form{local.node().op, local.default_operands(), local.node().attributes};
  reference::set_attention_dropout(form.attributes, *local.dropout());
  return form;
}

LocalForm unchanged(LocalNode& local) {
  return {local.node().op, local.default_operands(), local.node().attributes};
}

const Localizer& localizer_of(const ir::Node& node) {
  static const std::unordered_map<std::string, Localizer> kTable = {
      {"Reshape", local_view},   {"Squeeze", local_view},         {"Unsqueeze", local_view},
      {"Flatten", local_view},   {"Expand", local_expand},        {"Tile", local_tile},
      {"Split", local_split},    {"Slice", local_slice},          {"Pad", local_pad},
      {"Range", local_range_op}, {"ConstantOfShape", local_fill},
  };
  static const Localizer kUnchanged = unchanged;
  static const Localizer kDraw = local_draw;
  static const Localizer kAttention = local_attention;
  if (ir::is_draw(node)) return kDraw;
  if (ir::drops_weights(node)) return kAttention;
  const auto found = node.domain.empty() ? kTable.find(node.op) : kTable.end();
  return found == kTable.end() ? kUnchanged : found->second;
}

bool is_whole_everywhere(const SpmdProgram& program, const Compute& compute) {
  auto whole = [&](PlacedId id) {
    return !id || std::ranges::all_of(program.at(id).layout,
                                      [](const auto& axis) { return !axis.is_split(); });
  };
  return std::ranges::all_of(compute.operands, whole) &&
         std::ranges::all_of(compute.results, whole);
}

std::vector<size_t> partial_axes(const shard::Layout& layout) {
  std::vector<size_t> axes;
  for (size_t k = 0; k < layout.size(); ++k) {
    if (layout[k].is_partial()) axes.push_back(k);
  }
  return axes;
}

// The first of the rank's numbers among those of a dimension whose atoms these are, of which the
// rank holds `ranges`; nullopt where these do not follow each other.
std::optional<int64_t> first_number(const std::vector<Interval>& ranges,
                                    const std::vector<int64_t>& whole) {
  int64_t first = 0;
  bool is_major = true;
  for (size_t a = 0; a < ranges.size(); ++a) {
    if (!is_major && ranges[a].extent() != whole[a]) return std::nullopt;
    first = first * whole[a] + ranges[a].begin;
    is_major = is_major && ranges[a].extent() == 1;
  }
  return first;
}

}  // namespace

std::optional<reference::AttentionDropout> local_dropout(const SpmdProgram& program,
                                                         const Compute& compute, int64_t rank) {
  const ir::Node& node = program.graph().node(compute.node);
  auto dropout = reference::attention_dropout(node.attributes);
  if (!dropout) return dropout;
  const size_t query =
      (node.op == "Attention" ? reference::kAttention : reference::kAttentionGrad).query;
  const Placed& queries = program.at(compute.operands[query]);
  const Placed& keys = program.at(compute.operands[query + 1]);
  const auto ranges = local_ranges(queries, program.plan->mesh, rank);
  // The heads' atoms: those of the KV heads, and after them those of each one's query heads.
  const int64_t kv_heads = program.graph().shape(node.inputs[query + 1])[1];
  int64_t of_kv = 0;
  for (int64_t heads = 1; heads < kv_heads; ++of_kv) {
    heads *= queries.atoms[1][static_cast<size_t>(of_kv)];
  }
  const auto first_of = [](const std::vector<Interval>& held, const std::vector<int64_t>& whole,
                           int64_t begin, int64_t end) {
    return first_number({held.begin() + begin, held.begin() + end},
                        {whole.begin() + begin, whole.begin() + end});
  };
  const auto all_of = [&](const std::vector<Interval>& held, const std::vector<int64_t>& whole) {
    return first_of(held, whole, 0, std::ssize(held));
  };
  const std::array<std::optional<int64_t>, 5> first = {
      all_of(ranges[0], queries.atoms[0]), first_of(ranges[1], queries.atoms[1], 0, of_kv),
      first_of(ranges[1], queries.atoms[1], of_kv, std::ssize(ranges[1])),
      all_of(ranges[2], queries.atoms[2]),
      all_of(local_ranges(keys, program.plan->mesh, rank)[2], keys.atoms[2])};
  for (size_t d = 0; d < first.size(); ++d) {
    if (!first[d]) {
      throw Error("{}: a rank's weights are not dropped by numbers that follow each other",
                  program.graph().describe(node))
          .help("shard with --attention unfused");
    }
    dropout->offset += *first[d] * dropout->strides[d];
  }
  return dropout;
}

bool is_first(const std::vector<size_t>& axes, const shard::Mesh& mesh, int64_t rank) {
  const auto coordinates = mesh.coordinates(rank);
  return std::ranges::all_of(axes, [&](size_t axis) { return coordinates[axis] == 0; });
}

ir::Tensor local_constant(const SpmdProgram& program, PlacedId id, int64_t rank) {
  const Placed& placed = program.at(id);
  const ir::Tensor& whole = program.graph().constant(placed.value);
  const auto ranges = local_ranges(placed, program.plan->mesh, rank);
  ir::Shape by_atom;
  std::vector<int64_t> begin;
  ir::Shape extent;
  ir::Shape shape;
  for (size_t d = 0; d < ranges.size(); ++d) {
    shape.push_back(1);
    for (size_t a = 0; a < ranges[d].size(); ++a) {
      by_atom.push_back(placed.atoms[d][a]);
      begin.push_back(ranges[d][a].begin);
      extent.push_back(ranges[d][a].extent());
      shape.back() *= extent.back();
    }
  }
  if (!is_first(partial_axes(placed.layout), program.plan->mesh, rank))
    return ir::Tensor(ir::Type{whole.dtype(), shape});
  if (shape == whole.shape()) return whole;
  return whole.reshaped(by_atom).block(begin, extent).reshaped(shape);
}

std::vector<ValueId> emit_local_node(const SpmdProgram& program, const Compute& compute,
                                     int64_t rank, const std::vector<ValueId>& operands,
                                     const std::string& suffix, ir::Builder& build) {
  LocalNode local(program, compute, rank, operands, build);
  const ir::Node& node = local.node();
  LocalForm form =
      is_whole_everywhere(program, compute) ? unchanged(local) : localizer_of(node)(local);
  std::vector<ir::Type> types;
  std::vector<std::string> names;
  for (size_t k = 0; k < node.outputs.size(); ++k) {
    if (!node.outputs[k]) {
      types.emplace_back();
      names.emplace_back();
      continue;
    }
    types.push_back({program.graph().type(node.outputs[k]).dtype, local.result_shape(k)});
    names.push_back(program.graph().name_of(node.outputs[k]) + suffix);
  }
  const NodeId id = build.graph().add_node(std::move(form.op), std::move(form.operands),
                                           std::move(types), std::move(form.attributes),
                                           node.domain, std::move(names), node.name + suffix);
  build.graph().set_origin(id, node.origin.empty() ? node.name : node.origin);
  return build.graph().node(id).outputs;
}

ValueId emit_slice(ir::Builder& build, ValueId x, const std::vector<Interval>& held,
                   const std::vector<Interval>& wanted, const std::string& name) {
  std::vector<int64_t> begins;
  std::vector<int64_t> ends;
  for (size_t k = 0; k < held.size(); ++k) {
    begins.push_back(wanted[k].begin - held[k].begin);
    ends.push_back(wanted[k].end - held[k].begin);
  }
  return build.slice_all(x, begins, ends, name);
}

}  // namespace autosp::transforms
