#include "transforms/ring_attention/ring.h"

#include <algorithm>

#include "base/error.h"
#include "transforms/ring_attention/ring_schedules.h"
#include "transforms/sixteen_bit.h"
#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

using What = RingTransfer::What;

Ring::Ring(const SpmdProgram& program, const Compute& compute)
    : program_(program),
      compute_(compute),
      at_(*shard::attention_operands(program.graph().node(compute.node))),
      axis_(program.plan->axis_named("r")),
      schedule_(program.ring_schedules->of(program, compute)) {
  const ir::Graph& graph = program.graph();
  unseen_ = shard::has_unseen_rows(graph, graph.node(compute.node));
  list_transfers();
}

size_t Ring::member_of(int64_t rank) const {
  return static_cast<size_t>(program_.plan->mesh.coordinates(rank)[axis_]);
}

std::vector<int64_t> Ring::ranks_with(int64_t rank) const {
  return group_of(rank, {axis_}, program_.plan->mesh);
}

void Ring::list_transfers() {
  const ir::Node& node = program_.graph().node(compute_.node);
  const bool gradient = node.op == "AttentionGrad";
  for (size_t k = 0; k < compute_.operands.size(); ++k) {
    const PlacedId operand = compute_.operands[k];
    if (operand_positions(k) && !program_.is_constant(operand)) add(What::kDeal, k);
  }
  if (unseen_) {
    for (size_t k = 0; k < unseen_shapes(0).size(); ++k) add(What::kUnseen, k);
  }
  for (size_t step = 0; step < schedule_->steps(); ++step) {
    if (step + 1 < schedule_->steps()) {
      add(What::kKey, step + 1);
      add(What::kValue, step + 1);
    }
    if (step == 0 || !gradient) continue;
    if (compute_.results[1]) add(What::kKeyGradient, step);
    if (compute_.results[2]) add(What::kValueGradient, step);
  }
  for (size_t k = 0; k < compute_.results.size(); ++k) {
    if (compute_.results[k] && result_positions(k)) add(What::kReturn, k);
  }
}

// Keys' positions are those of keys and values alone: what else runs over keys, all have whole.
std::optional<Ring::PositionDim> Ring::operand_positions(size_t operand) const {
  if (!is_zigzag() || !compute_.operands[operand]) return std::nullopt;
  if (operand == at_.key || operand == at_.value) return PositionDim{2, schedule_->keys()};
  const bool is_vector = operand == at_.begin || operand == at_.end || operand == at_.query_segment;
  const bool of_keys = operand == at_.key_mask || operand == at_.key_segment;
  if (is_vector) return PositionDim{1, schedule_->queries()};
  if (operand > at_.query_segment || of_keys) return std::nullopt;  // sink, step
  const ir::Graph& graph = program_.graph();
  const ir::Node& node = graph.node(compute_.node);
  if (operand == at_.bias && graph.shape(node.inputs[operand])[2] == 1) return std::nullopt;
  return PositionDim{2, schedule_->queries()};
}

std::optional<Ring::PositionDim> Ring::result_positions(size_t result) const {
  if (!is_zigzag() || result > 2) return std::nullopt;  // gradients of bias and sink
  const bool of_keys = program_.graph().node(compute_.node).op == "AttentionGrad" && result > 0;
  return PositionDim{2, of_keys ? schedule_->keys() : schedule_->queries()};
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

PlacedId Ring::value_of(What what, size_t step) const {
  switch (what) {
    case What::kDeal:
      return compute_.operands[step];
    case What::kReturn:
      return compute_.results[step];
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
  static constexpr std::string_view kKinds[] = {"key",    "value", "home-key", "home-value",
                                                "unseen", "deal",  "return"};
  transfers_.push_back(
      {.what = what,
       .step = step,
       .value = value_of(what, step),
       .node = fmt::format(
           "{}@ring-{}{}#{}{}", program_.graph().name_of(program_.at(value_of(what, step)).value),
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
  type.shape = local_shape(placed, program_.plan->mesh, rank);
  if (transfer.what == What::kDeal || transfer.what == What::kReturn) {
    const bool deals = transfer.what == What::kDeal;
    const auto [dim, order] =
        *(deals ? operand_positions(transfer.step) : result_positions(transfer.step));
    const int64_t all = deals ? order.block(member).extent() : count(order.of(member));
    type.shape[dim] = all - order.share(member, member).in_block.extent();
    return type.num_bytes();
  }
  const bool is_block = transfer.what == What::kKey || transfer.what == What::kValue;
  const bool sends = is_block ? schedule_->holds(schedule_->next(member), transfer.step)
                              : schedule_->attends(member, transfer.step);
  if (!sends) return 0;
  const size_t block = schedule_->owner(member, is_block ? transfer.step - 1 : transfer.step);
  type.shape[2] = count(schedule_->keys().of(block));
  return type.num_bytes();
}

ZigzagUse zigzag_use(const SpmdProgram& program) {
  ZigzagUse use;
  for (const Instruction& instruction : program.instructions) {
    const auto* compute = std::get_if<Compute>(&instruction);
    if (compute == nullptr || !program.plan->is_on_ring(compute->node)) continue;
    const Ring ring(program, *compute);
    ++use.rings;
    if (ring.is_zigzag()) {
      ++use.zigzag;
    } else {
      use.why_in_blocks.insert(ring.schedule().why_in_blocks());
    }
  }
  return use;
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
  if (!program.plan->zigzag_asked) return total;
  // What is dealt out is held twice, and a result once more before it is returned.
  const Ring ring(program, compute);
  for (const RingTransfer& transfer : ring.transfers()) {
    if (transfer.what == What::kDeal) total += bytes(transfer.value, false);
  }
  if (ring.is_zigzag() && forward) total += bytes(compute.results[0], false);
  return total;
}

}  // namespace autosp::transforms
