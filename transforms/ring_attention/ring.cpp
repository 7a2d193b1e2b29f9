#include "transforms/ring_attention/ring.h"

#include <algorithm>

#include "base/error.h"
#include "transforms/sixteen_bit.h"
#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

using shard::Interval;
using What = RingTransfer::What;

Ring::Ring(const SpmdProgram& program, const Compute& compute)
    : program_(program),
      compute_(compute),
      at_(*shard::attention_operands(program.graph().node(compute.node))),
      axis_(program.plan->axis_named("r")) {
  const ir::Graph& graph = program.graph();
  unseen_ = shard::has_unseen_rows(graph, graph.node(compute.node));
  find_ranges();
  find_attended();
  list_transfers();
}

size_t Ring::member_of(int64_t rank) const {
  return static_cast<size_t>(program_.plan->mesh.coordinates(rank)[axis_]);
}

std::vector<int64_t> Ring::ranks_with(int64_t rank) const {
  return group_of(rank, {axis_}, program_.plan->mesh);
}

// Positions follow from the place along axis r alone: inside attention the other axes split heads
// and batches.
void Ring::find_ranges() {
  for (int64_t rank : ranks_with(0)) {
    keys_.push_back(input_slice(program_, program_.at(compute_.operands[at_.key]), rank)[2]);
    queries_.push_back(input_slice(program_, program_.at(compute_.operands[at_.query]), rank)[2]);
  }
}

void Ring::find_attended() {
  const ir::Graph& graph = program_.graph();
  const ir::Node& node = graph.node(compute_.node);
  const auto begins = graph.constant_ints(node.input(at_.begin));
  const auto ends = graph.constant_ints(node.input(at_.end));
  const auto queries = static_cast<size_t>(queries_.back().end);
  attends_.assign(members(), std::vector<bool>(members(), false));
  const auto attend = [&](size_t member, size_t owner) {
    const size_t step = (member + members() - owner) % members();
    attends_[member][step] = true;
    steps_ = std::max(steps_, step + 1);
  };
  for (size_t m = 0; m < members(); ++m) attend(m, m);
  // One mask for all samples, or one for each: whatever anyone sees is attended to, and what lies
  // between. What is computed during the run may be anything.
  const size_t rows = std::max({queries, begins ? begins->size() : 0, ends ? ends->size() : 0});
  for (size_t m = 0; m < members(); ++m) {
    Interval seen{key_extent(), 0};
    for (size_t first = 0; first < rows; first += queries) {
      for (int64_t query = queries_[m].begin; query < queries_[m].end; ++query) {
        const size_t row = first + static_cast<size_t>(query);
        const int64_t from = begins ? (*begins)[row % begins->size()] : 0;
        const int64_t to = ends ? (*ends)[row % ends->size()] : key_extent();
        if (from >= to) continue;
        seen = {std::min(seen.begin, from), std::max(seen.end, to)};
      }
    }
    for (size_t owner = 0; owner < members(); ++owner) {
      if (std::max(seen.begin, keys_[owner].begin) < std::min(seen.end, keys_[owner].end))
        attend(m, owner);
    }
  }
}

bool Ring::holds(size_t member, size_t step) const {
  const size_t block = owner(member, step);
  for (size_t later = step; later < steps_; ++later) {
    if (attends(next(block, later), later)) return true;
  }
  return false;
}

void Ring::list_transfers() {
  const ir::Node& node = program_.graph().node(compute_.node);
  const bool gradient = node.op == "AttentionGrad";
  if (unseen_) {
    for (size_t k = 0; k < unseen_shapes(0).size(); ++k) add(What::kUnseen, k);
  }
  for (size_t step = 0; step < steps_; ++step) {
    if (step + 1 < steps_) {
      add(What::kKey, step + 1);
      add(What::kValue, step + 1);
    }
    if (step == 0 || !gradient) continue;
    if (compute_.results[1]) add(What::kKeyGradient, step);
    if (compute_.results[2]) add(What::kValueGradient, step);
  }
}

// As UnseenRows::terms() has them.
std::vector<ir::Shape> Ring::unseen_shapes(int64_t rank) const {
  const auto shape_of = [&](size_t operand) {
    return local_shape(program_.at(compute_.operands[operand]), program_.plan->mesh, rank);
  };
  const ir::Shape key = shape_of(at_.key);
  const int64_t width = shape_of(at_.value)[3];
  const ir::Shape of_values = {key[0], key[1], 1, width};
  const ir::Node& node = program_.graph().node(compute_.node);
  if (node.op != "AttentionGrad" || node.attributes.get_int("dead_row_gradient", 0) == 0)
    return {of_values};
  const ir::Shape products = {key[0], key[1], width, key[3]};
  const ir::Shape of_keys = {key[0], key[1], 1, key[3]};
  return {of_values, products, of_keys, products, of_keys};
}

PlacedId Ring::value_of(What what) const {
  switch (what) {
    case What::kKey:
      return compute_.operands[at_.key];
    case What::kValue:
    case What::kUnseen:
      return compute_.operands[at_.value];
    case What::kKeyGradient:
      return compute_.results[1];
    case What::kValueGradient:
      return compute_.results[2];
  }
  internal_error(__FILE__, __LINE__, "what");
}

// Key and value may be one value, and both directions hand them on: the operator's own first result
// tells these apart.
void Ring::add(What what, size_t step) {
  const std::vector<PlacedId>& results = compute_.results;
  const PlacedId made = *std::ranges::find_if(results, [](PlacedId id) { return id.valid(); });
  static constexpr std::string_view kKinds[] = {"key", "value", "home-key", "home-value", "unseen"};
  transfers_.push_back(
      {.what = what,
       .step = step,
       .value = value_of(what),
       .node = fmt::format(
           "{}@ring-{}{}#{}{}", program_.graph().name_of(program_.at(value_of(what)).value),
           kKinds[static_cast<size_t>(what)], step, made.index(), name_suffix(compute_.phase))});
}

const RingTransfer* Ring::find(What what, size_t step) const {
  const auto found = std::ranges::find_if(
      transfers_, [&](const auto& other) { return other.what == what && other.step == step; });
  return found == transfers_.end() ? nullptr : &*found;
}

int64_t Ring::bytes_sent(const RingTransfer& transfer, int64_t rank) const {
  const Placed& placed = program_.at(transfer.value);
  ir::Type type{program_.graph().type(placed.value).dtype, {}};
  if (transfer.what == What::kUnseen) {
    type.dtype = wide_type(type.dtype);
    type.shape = unseen_shapes(rank)[transfer.step];
    const auto count = static_cast<int64_t>(members());
    return 2 * type.num_bytes() * (count - 1) / count;
  }
  const size_t member = member_of(rank);
  const bool is_block = transfer.what == What::kKey || transfer.what == What::kValue;
  const bool sends = is_block ? holds(next(member), transfer.step) : attends(member, transfer.step);
  if (!sends) return 0;
  const size_t block = owner(member, is_block ? transfer.step - 1 : transfer.step);
  type.shape = local_shape(placed, program_.plan->mesh, rank);
  type.shape[2] = keys(block).extent();
  return type.num_bytes();
}

int64_t ring_working_bytes(const SpmdProgram& program, const Compute& compute, int64_t rank) {
  const ir::Node& node = program.graph().node(compute.node);
  const shard::AttentionOperands at = *shard::attention_operands(node);
  const auto bytes = [&](PlacedId id, bool wide) {
    if (!id) return int64_t{0};
    ir::Type type{program.graph().type(program.at(id).value).dtype,
                  local_shape(program.at(id), program.plan->mesh, rank)};
    if (wide) type.dtype = wide_type(type.dtype);
    return type.num_bytes();
  };
  // The block in use and the next one.
  int64_t total =
      2 * (bytes(compute.operands[at.key], false) + bytes(compute.operands[at.value], false));
  // A partial result, and the sum of all so far; a gradient that leaves, and one that arrives.
  const bool forward = node.op == "Attention";
  total += bytes(forward ? compute.results[0] : compute.operands[at.query], true);
  if (!forward) {
    for (size_t k : {1, 2})
      total += 2 * bytes(compute.results[k], false) + bytes(compute.results[k], true);
  }
  return total;
}

}  // namespace autosp::transforms
