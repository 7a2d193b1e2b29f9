#include "transforms/training/training_plan.h"

#include <fmt/format.h>

#include "base/error.h"

namespace autosp::transforms {

std::vector<Bucket> make_buckets(const std::vector<TrainedParameter>& parameters,
                                 const std::vector<size_t>& order, int64_t bucket_bytes,
                                 int64_t ranks) {
  std::vector<Bucket> buckets;
  int64_t bytes = 0;
  for (size_t k : order) {
    const TrainedParameter& parameter = parameters[k];
    const int64_t more = ir::Type{parameter.gradient_dtype, parameter.type.shape}.num_bytes();
    const auto joins = [&] {
      if (buckets.empty() || bytes + more > bucket_bytes) return false;
      const TrainedParameter& first = parameters[buckets.back().members.front().parameter];
      return first.type.dtype == parameter.type.dtype &&
             first.gradient_dtype == parameter.gradient_dtype;
    };
    if (!joins()) {
      buckets.push_back({.name = fmt::format("bucket_{}", buckets.size()),
                         .members = {},
                         .elements = 0,
                         .cuts = {}});
      bytes = 0;
    }
    buckets.back().members.push_back({k, buckets.back().elements});
    buckets.back().elements += parameter.type.num_elements();
    bytes += more;
  }
  for (Bucket& bucket : buckets) bucket.cuts = shard::even_cuts(bucket.elements, ranks);
  return buckets;
}

ir::DataType update_dtype(ir::DataType parameter) {
  return parameter == ir::DataType::kFloat64 ? parameter : ir::DataType::kFloat32;
}

std::vector<UpdateUnit> update_units(const TrainingPlan& plan, int64_t rank) {
  std::vector<UpdateUnit> units;
  if (plan.zero == 0) {
    for (size_t k = 0; k < plan.parameters.size(); ++k) {
      const TrainedParameter& parameter = plan.parameters[k];
      units.push_back({.name = parameter.name,
                       .gradient = parameter.gradient,
                       .shape = parameter.type.shape,
                       .dtype = parameter.type.dtype,
                       .gradient_dtype = parameter.gradient_dtype,
                       .index = k});
    }
    return units;
  }
  for (size_t k = 0; k < plan.buckets.size(); ++k) {
    const Bucket& bucket = plan.buckets[k];
    units.push_back({.name = bucket.name,
                     .gradient = bucket.name + ".grad",
                     .shape = {bucket.shard_elements(rank)},
                     .dtype = plan.dtype(bucket),
                     .gradient_dtype = plan.gradient_dtype(bucket),
                     .index = k});
  }
  return units;
}

std::vector<std::string> state_names(const TrainingPlan& plan, ir::DataType parameter) {
  std::vector<std::string> names;
  if (update_dtype(parameter) != parameter) names.emplace_back(kMaster);
  for (std::string_view name : find_optimizer(plan.optimizer.name).states(plan.optimizer)) {
    names.emplace_back(name);
  }
  return names;
}

TrainingBytes training_bytes(const TrainingPlan& plan, int64_t rank) {
  TrainingBytes bytes;
  for (const UpdateUnit& unit : update_units(plan, rank)) {
    const auto states = static_cast<int64_t>(state_names(plan, unit.dtype).size());
    bytes.optimizer_state += states * ir::Type{update_dtype(unit.dtype), unit.shape}.num_bytes();
    if (plan.zero == 3) bytes.parameters += ir::Type{unit.dtype, unit.shape}.num_bytes();
    const ir::Shape& whole =
        plan.zero == 1 ? ir::Shape{plan.buckets[unit.index].elements} : unit.shape;
    bytes.gradients += ir::Type{unit.gradient_dtype, whole}.num_bytes();
    if (plan.accumulate > 1) {
      bytes.gradient_sums += ir::Type{update_dtype(unit.dtype), whole}.num_bytes();
    }
  }
  if (plan.zero < 3) {
    for (const TrainedParameter& parameter : plan.parameters) {
      bytes.parameters += parameter.type.num_bytes();
    }
  }
  return bytes;
}

}  // namespace autosp::transforms
