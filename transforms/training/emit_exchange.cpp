#include "transforms/training/emit_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "transforms/spmd/localize.h"

namespace autosp::transforms {

namespace {

std::string gradient_node(const Bucket& bucket, int zero) {
  return fmt::format("{}@{}", bucket.name, zero == 0 ? "AllReduce" : "ReduceScatter");
}

std::string gather_node(const Bucket& bucket, size_t instruction) {
  return fmt::format("{}@AllGather#{}", bucket.name, instruction);
}

std::vector<int64_t> all_ranks(int64_t count) {
  std::vector<int64_t> ranks(static_cast<size_t>(count));
  std::iota(ranks.begin(), ranks.end(), int64_t{0});
  return ranks;
}

Phase phase_before(const SpmdProgram& program, size_t instruction) {
  return phase_of(program.instructions[instruction]) == Phase::kForward ? Phase::kForward
                                                                        : Phase::kBackward;
}

}  // namespace

ExchangeEmitter::ExchangeEmitter(const SpmdProgram& program, int64_t rank,
                                 std::function<ValueId(PlacedId)> local,
                                 std::function<void(PlacedId, ValueId)> define, ir::Builder& build)
    : program_(program),
      exchange_(program.exchange.get()),
      rank_(rank),
      local_(std::move(local)),
      define_(std::move(define)),
      build_(build) {
  if (exchange_ != nullptr) bucket_gradients_.resize(exchange_->plan.buckets.size());
}

bool ExchangeEmitter::shards_input(PlacedId input) const {
  return exchange_ != nullptr && exchange_->gathers_parameters() &&
         std::ranges::find(exchange_->inputs, input) != exchange_->inputs.end();
}

void ExchangeEmitter::add_shards() {
  if (exchange_ == nullptr || !exchange_->gathers_parameters()) return;
  const TrainingPlan& plan = exchange_->plan;
  for (const Bucket& bucket : plan.buckets) {
    shards_.push_back(build_.graph().add_input(
        bucket.name, {plan.dtype(bucket), {bucket.shard_elements(rank_)}}));
  }
}

bool ExchangeEmitter::replaces(size_t instruction) const {
  return is_replaced(program_, instruction);
}

void ExchangeEmitter::before(size_t instruction) {
  if (exchange_ == nullptr) return;
  const auto found = exchange_->gathers.find(instruction);
  if (found == exchange_->gathers.end()) return;
  for (size_t bucket : found->second) gather(bucket, instruction);
}

void ExchangeEmitter::after(size_t instruction) {
  if (exchange_ == nullptr) return;
  for (size_t b = 0; b < exchange_->complete_after.size(); ++b) {
    if (exchange_->complete_after[b] == instruction) send(b);
  }
}

bool ExchangeEmitter::carries_output(size_t output) const {
  if (exchange_ == nullptr || exchange_->plan.zero == 0) return false;
  const auto& gradients = program_.plan->roles.gradients;
  return std::ranges::any_of(gradients, [output](const auto& g) { return g.output == output; });
}

void ExchangeEmitter::add_bucket_outputs() {
  if (exchange_ == nullptr || exchange_->plan.zero == 0) return;
  for (size_t b = 0; b < bucket_gradients_.size(); ++b) {
    build_.graph().add_output(exchange_->plan.buckets[b].name + ".grad", bucket_gradients_[b]);
  }
}

// What this rank adds to the sum of all ranks: of ranks that hold the same term, the first.
ValueId ExchangeEmitter::term(size_t parameter) {
  const GradientTerms& terms = exchange_->terms[parameter];
  std::vector<size_t> alike;
  for (size_t axis = 0; axis < program_.plan->mesh.num_axes(); ++axis) {
    if (std::ranges::find(terms.partial, axis) == terms.partial.end()) alike.push_back(axis);
  }
  const ValueId value = local_(terms.value);
  if (is_first(alike, program_.plan->mesh, rank_)) return value;
  return build_.zeros(build_.graph().type(value));
}

ValueId ExchangeEmitter::flat_terms(const Bucket& bucket) {
  std::vector<ValueId> parts;
  for (const BucketMember& member : bucket.members) {
    const int64_t elements = exchange_->plan.parameter(member).type.num_elements();
    parts.push_back(build_.reshape(term(member.parameter), {elements}));
  }
  return build_.concat(std::move(parts), 0);
}

void ExchangeEmitter::send(size_t b) {
  const TrainingPlan& plan = exchange_->plan;
  const Bucket& bucket = plan.buckets[b];
  const size_t first = build_.graph().nodes().size();
  const ValueId terms = flat_terms(bucket);
  const std::string name = gradient_node(bucket, plan.zero);
  if (plan.zero == 1) {
    bucket_gradients_[b] = terms;  // the update sums them
  } else if (plan.zero > 1) {
    bucket_gradients_[b] =
        collective("ReduceScatter", terms, bucket, bucket.shard_elements(rank_), name);
  } else {
    const ValueId sum = collective("AllReduce", terms, bucket, bucket.elements, name);
    for (const BucketMember& member : bucket.members) {
      const ir::Shape& shape = plan.parameter(member).type.shape;
      const int64_t end = member.offset + ir::num_elements(shape);
      define_(exchange_->terms[member.parameter].sum,
              build_.reshape(build_.slice_all(sum, {member.offset}, {end}), shape));
    }
  }
  set_phase(first, Phase::kBackward);
}

void ExchangeEmitter::gather(size_t b, size_t instruction) {
  const TrainingPlan& plan = exchange_->plan;
  const Bucket& bucket = plan.buckets[b];
  const size_t first = build_.graph().nodes().size();
  const ValueId whole = collective("AllGather", shards_[b], bucket, bucket.elements,
                                   gather_node(bucket, instruction));
  for (const BucketMember& member : bucket.members) {
    const ir::Shape& shape = plan.parameter(member).type.shape;
    const int64_t end = member.offset + ir::num_elements(shape);
    define_(exchange_->inputs[member.parameter],
            build_.reshape(build_.slice_all(whole, {member.offset}, {end}), shape));
  }
  set_phase(first, phase_before(program_, instruction));
}

ValueId ExchangeEmitter::collective(const std::string& op, ValueId x, const Bucket& bucket,
                                    int64_t elements, const std::string& name) {
  ir::Attributes attributes{{"group", all_ranks(exchange_->plan.ranks)}};
  if (op != "AllReduce") {
    std::vector<int64_t> sizes;
    for (int64_t k = 0; k < exchange_->plan.ranks; ++k) sizes.push_back(bucket.shard_elements(k));
    attributes.set("axis", int64_t{0});
    attributes.set("sizes", std::move(sizes));
  }
  return build_.node(op, {x}, ir::Type{build_.dtype(x), {elements}}, std::move(attributes),
                     std::string(ir::kAutospDomain), name);
}

void ExchangeEmitter::set_phase(size_t first_node, Phase phase) {
  for (size_t n = first_node; n < build_.graph().nodes().size(); ++n) {
    build_.graph().set_phase(NodeId(n), name_of(phase));
  }
}

std::vector<ExchangeRecord> records_before(const SpmdProgram& program, size_t instruction) {
  std::vector<ExchangeRecord> records;
  if (program.exchange == nullptr) return records;
  const auto found = program.exchange->gathers.find(instruction);
  if (found == program.exchange->gathers.end()) return records;
  const TrainingPlan& plan = program.exchange->plan;
  for (size_t b : found->second) {
    const Bucket& bucket = plan.buckets[b];
    const ir::Type largest{plan.dtype(bucket), {bucket.shard_elements(0)}};
    records.push_back({.node = gather_node(bucket, instruction),
                       .kind = StepKind::kAllGather,
                       .value = bucket.name,
                       .bytes = largest.num_bytes() * (plan.ranks - 1),
                       .phase = phase_before(program, instruction),
                       .purpose = Purpose::kParameter});
  }
  return records;
}

std::vector<ExchangeRecord> records_after(const SpmdProgram& program, size_t instruction) {
  std::vector<ExchangeRecord> records;
  if (program.exchange == nullptr || program.exchange->plan.zero == 1) return records;
  const TrainingPlan& plan = program.exchange->plan;
  for (size_t b = 0; b < plan.buckets.size(); ++b) {
    if (program.exchange->complete_after[b] != instruction) continue;
    const Bucket& bucket = plan.buckets[b];
    const ir::DataType dtype = plan.gradient_dtype(bucket);
    const int64_t bytes = ir::Type{dtype, {bucket.elements}}.num_bytes();
    const int64_t kept = ir::Type{dtype, {bucket.shard_elements(plan.ranks - 1)}}.num_bytes();
    records.push_back(
        {.node = gradient_node(bucket, plan.zero),
         .kind = plan.zero == 0 ? StepKind::kAllReduce : StepKind::kReduceScatter,
         .value = bucket.name,
         .bytes = plan.zero == 0 ? 2 * bytes * (plan.ranks - 1) / plan.ranks : bytes - kept});
  }
  return records;
}

bool is_replaced(const SpmdProgram& program, size_t instruction) {
  return program.exchange != nullptr && program.exchange->replaced[instruction];
}

}  // namespace autosp::transforms
