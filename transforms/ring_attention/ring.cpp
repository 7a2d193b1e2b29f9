#include "transforms/ring_attention/ring.h"

#include <algorithm>

#include "base/error.h"
#include "ir/operator_traits.h"
#include "transforms/sixteen_bit.h"
#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

using shard::Interval;
using What = RingTransfer::What;

namespace {

// Of the busiest member's keys, what zigzag order has to save.
constexpr double kLeastSaving = 0.1;

}  // namespace

Ring::Ring(const SpmdProgram& program, const Compute& compute)
    : program_(program),
      compute_(compute),
      at_(*shard::attention_operands(program.graph().node(compute.node))),
      axis_(program.plan->axis_named("r")) {
  const ir::Graph& graph = program.graph();
  unseen_ = shard::has_unseen_rows(graph, graph.node(compute.node));
  find_intervals();
  choose_order();
  find_attended();
  list_transfers();
}

size_t Ring::member_of(int64_t rank) const {
  return static_cast<size_t>(program_.plan->mesh.coordinates(rank)[axis_]);
}

std::vector<int64_t> Ring::ranks_with(int64_t rank) const {
  return group_of(rank, {axis_}, program_.plan->mesh);
}

// One mask for all samples, or one for each, after one another. What is computed during the run may
// be anything.
void Ring::find_intervals() {
  const ir::Graph& graph = program_.graph();
  const ir::Node& node = graph.node(compute_.node);
  const auto begins = graph.constant_ints(node.input(at_.begin));
  const auto ends = graph.constant_ints(node.input(at_.end));
  const int64_t keys = graph.shape(node.inputs[at_.key])[2];
  const size_t rows = std::max(begins ? begins->size() : 0, ends ? ends->size() : 0);
  for (size_t row = 0; row < rows; ++row) {
    const int64_t from = begins ? (*begins)[row % begins->size()] : 0;
    const int64_t to = ends ? (*ends)[row % ends->size()] : keys;
    intervals_.push_back({std::max<int64_t>(from, 0), std::min(to, keys)});
  }
}

// Positions follow from the place along axis r alone: inside attention the other axes split heads
// and batches.
void Ring::choose_order() {
  std::vector<Interval> keys;
  std::vector<Interval> queries;
  for (int64_t rank : ranks_with(0)) {
    keys.push_back(input_slice(program_, program_.at(compute_.operands[at_.key]), rank)[2]);
    queries.push_back(input_slice(program_, program_.at(compute_.operands[at_.query]), rank)[2]);
  }
  keys_ = TokenOrder::in_blocks(keys);
  queries_ = TokenOrder::in_blocks(queries);
  const TokenOrder zigzag = TokenOrder::in_zigzag(std::move(queries));
  why_in_blocks_ = why_no_zigzag(zigzag);
  if (!is_zigzag()) return;
  queries_ = zigzag;
  keys_ = TokenOrder::in_zigzag(std::move(keys));
}

std::string Ring::why_no_zigzag(const TokenOrder& zigzag) const {
  if (!program_.plan->zigzag_asked) return "nobody asks for another order";
  if (ir::drops_weights(program_.graph().node(compute_.node)))
    return "its weights are dropped at random, by numbers that follow each other";
  if (intervals_.empty()) return "no causal mask or window is known";
  const auto in_blocks = static_cast<double>(keys_seen_by_busiest(queries_));
  const auto in_zigzag = static_cast<double>(keys_seen_by_busiest(zigzag));
  const bool saves = in_zigzag < (1 - kLeastSaving) * in_blocks;
  return saves ? "" : "it would not save the busiest member a tenth of its keys";
}

int64_t Ring::keys_seen_by_busiest(const TokenOrder& queries) const {
  const auto rows = static_cast<size_t>(queries.extent());
  int64_t most = 0;
  for (size_t member = 0; member < queries.members(); ++member) {
    int64_t seen = 0;
    for (size_t first = 0; first < intervals_.size(); first += rows) {
      for (const Interval& positions : queries.of(member)) {
        for (int64_t query = positions.begin; query < positions.end; ++query) {
          const Interval& keys = intervals_[first + static_cast<size_t>(query)];
          seen += std::max<int64_t>(keys.extent(), 0);
        }
      }
    }
    most = std::max(most, seen);
  }
  return most;
}

// The keys that any of the queries sees, and what lies between them.
Interval Ring::keys_seen_by(const Interval& queries) const {
  if (intervals_.empty()) return {0, key_extent()};
  Interval seen{key_extent(), 0};
  for (size_t first = 0; first < intervals_.size();
       first += static_cast<size_t>(queries_.extent())) {
    for (int64_t query = queries.begin; query < queries.end; ++query) {
      const Interval& row = intervals_[first + static_cast<size_t>(query)];
      if (row.extent() <= 0) continue;
      seen = {std::min(seen.begin, row.begin), std::max(seen.end, row.end)};
    }
  }
  return seen;
}

// Every member attends to its own block, whatever is seen of it.
void Ring::find_attended() {
  attends_.assign(members(), std::vector<bool>(members(), false));
  for (size_t member = 0; member < members(); ++member) {
    std::vector<Interval> seen;
    for (const Interval& queries : queries_.of(member)) seen.push_back(keys_seen_by(queries));
    const auto sees = [&](const Interval& keys) {
      return std::ranges::any_of(seen, [&](const Interval& interval) {
        return std::max(interval.begin, keys.begin) < std::min(interval.end, keys.end);
      });
    };
    for (size_t step = 0; step < members(); ++step) {
      if (step > 0 && std::ranges::none_of(keys_.of(owner(member, step)), sees)) continue;
      attends_[member][step] = true;
      steps_ = std::max(steps_, step + 1);
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
  for (size_t k = 0; k < compute_.operands.size(); ++k) {
    const PlacedId operand = compute_.operands[k];
    if (operand_positions(k) && !program_.is_constant(operand)) add(What::kDeal, k);
  }
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
  for (size_t k = 0; k < compute_.results.size(); ++k) {
    if (compute_.results[k] && result_positions(k)) add(What::kReturn, k);
  }
}

// Keys' positions are those of keys and values alone: what else runs over keys, all have whole.
std::optional<Ring::PositionDim> Ring::operand_positions(size_t operand) const {
  if (!is_zigzag() || !compute_.operands[operand]) return std::nullopt;
  if (operand == at_.key || operand == at_.value) return PositionDim{2, keys_};
  const bool is_vector = operand == at_.begin || operand == at_.end || operand == at_.query_segment;
  const bool of_keys = operand == at_.key_mask || operand == at_.key_segment;
  if (is_vector) return PositionDim{1, queries_};
  if (operand > at_.query_segment || of_keys) return std::nullopt;  // sink, step
  const ir::Graph& graph = program_.graph();
  const ir::Node& node = graph.node(compute_.node);
  if (operand == at_.bias && graph.shape(node.inputs[operand])[2] == 1) return std::nullopt;
  return PositionDim{2, queries_};
}

std::optional<Ring::PositionDim> Ring::result_positions(size_t result) const {
  if (!is_zigzag() || result > 2) return std::nullopt;  // gradients of bias and sink
  const bool of_keys = program_.graph().node(compute_.node).op == "AttentionGrad" && result > 0;
  return PositionDim{2, of_keys ? keys_ : queries_};
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
  const bool sends = is_block ? holds(next(member), transfer.step) : attends(member, transfer.step);
  if (!sends) return 0;
  const size_t block = owner(member, is_block ? transfer.step - 1 : transfer.step);
  type.shape[2] = count(keys(block));
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
      use.why_in_blocks.insert(ring.why_in_blocks());
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
