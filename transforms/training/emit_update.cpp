#include "transforms/training/emit_update.h"

#include <fmt/format.h>

#include <map>
#include <numeric>

#include "base/error.h"
#include "ir/rewriter.h"

namespace autosp::transforms {

namespace {

// As the rank graph gives it: every element of the bucket at zero 1.
ir::Shape gradient_shape(const TrainingPlan& plan, const UpdateUnit& unit) {
  return plan.zero == 1 ? ir::Shape{plan.buckets[unit.index].elements} : unit.shape;
}

class UpdateEmitter {
 public:
  UpdateEmitter(const TrainingPlan& plan, int64_t rank)
      : plan_(plan),
        row_(find_optimizer(plan.optimizer.name)),
        rank_(rank),
        units_(update_units(plan, rank)),
        build_(out_) {}

  ir::Graph emit() {
    out_.name = fmt::format("update_rank{}", rank_);
    rate_ = out_.add_input(kLearningRate, {ir::DataType::kFloat32, {}});
    step_ = out_.add_input(kStep, {ir::DataType::kInt64, {}});
    if (plan_.accumulate > 1) scale_ = out_.add_input(kGradientScale, {ir::DataType::kFloat32, {}});
    if (plan_.zero == 1 || plan_.zero == 2) {
      for (const TrainedParameter& parameter : plan_.parameters) {
        whole_.push_back(out_.add_input(parameter.name, parameter.type));
      }
    }
    for (const UpdateUnit& unit : units_) {
      if (has_own_weights()) {
        weights_.push_back(out_.add_input(unit.name, {unit.dtype, unit.shape}));
      }
      gradients_.push_back(gradient_input(unit));
    }
    if (plan_.optimizer.clip_norm > 0) {
      for (size_t k = 0; k < units_.size(); ++k) gradients_[k] = own_share(k);
      clip_factor_ = clip();
    }
    for (size_t k = 0; k < units_.size(); ++k) update(k);
    ir::Graph result = ir::without_dead_nodes(out_);
    ir::verify(result);
    return result;
  }

 private:
  // Otherwise a rank has the whole parameters, and updates its elements of a bucket.
  bool has_own_weights() const { return plan_.zero == 0 || plan_.zero == 3; }

  // The unit's parameters, in their own type.
  ValueId weight(size_t k) {
    return has_own_weights() ? weights_[k] : slice_of_whole(plan_.buckets[units_[k].index]);
  }

  // This rank's elements of the bucket, from the whole parameters.
  ValueId slice_of_whole(const Bucket& bucket) {
    const int64_t begin = bucket.cuts[static_cast<size_t>(rank_)];
    const int64_t end = bucket.cuts[static_cast<size_t>(rank_) + 1];
    std::vector<ValueId> parts;
    for (const BucketMember& member : bucket.members) {
      const int64_t elements = plan_.parameter(member).type.num_elements();
      const int64_t first = std::clamp(begin - member.offset, int64_t{0}, elements);
      const int64_t last = std::clamp(end - member.offset, int64_t{0}, elements);
      if (first == last) continue;
      const ValueId flat = build_.reshape(whole_[member.parameter], {elements});
      parts.push_back(build_.slice_all(flat, {first}, {last}));
    }
    if (parts.empty()) return build_.zeros({plan_.dtype(bucket), {0}});
    return build_.concat(std::move(parts), 0);
  }

  ValueId gradient_input(const UpdateUnit& unit) {
    return out_.add_input(
        sums() ? unit.gradient + ".sum" : unit.gradient,
        {sums() ? update_dtype(unit.dtype) : unit.gradient_dtype, gradient_shape(plan_, unit)});
  }
  bool sums() const { return plan_.accumulate > 1; }

  // The sum of all ranks' terms of what this rank updates.
  ValueId own_share(size_t k) {
    if (plan_.zero != 1 || plan_.ranks == 1) return gradients_[k];
    const Bucket& bucket = plan_.buckets[units_[k].index];
    return collective("ReduceScatter", gradients_[k], units_[k].shape, sizes_of(bucket),
                      bucket.name);
  }

  // In the type of the update, and of the mean over micro-batches.
  ValueId mean_gradient(const UpdateUnit& unit, ValueId gradient) {
    gradient = build_.cast(gradient, update_dtype(unit.dtype));
    if (!sums()) return gradient;
    return build_.binary("Mul", gradient, build_.cast(scale_, build_.dtype(gradient)));
  }

  static std::vector<int64_t> sizes_of(const Bucket& bucket) {
    std::vector<int64_t> sizes(bucket.cuts.size() - 1);
    for (size_t k = 0; k < sizes.size(); ++k) sizes[k] = bucket.cuts[k + 1] - bucket.cuts[k];
    return sizes;
  }

  // `sizes` is empty for an all-reduce.
  ValueId collective(const std::string& op, ValueId x, ir::Shape shape, std::vector<int64_t> sizes,
                     const std::string& name) {
    std::vector<int64_t> group(static_cast<size_t>(plan_.ranks));
    std::iota(group.begin(), group.end(), int64_t{0});
    ir::Attributes attributes{{"group", std::move(group)}};
    if (!sizes.empty()) {
      attributes.set("axis", int64_t{0});
      attributes.set("sizes", std::move(sizes));
    }
    return build_.node(op, {x}, ir::Type{build_.dtype(x), std::move(shape)}, std::move(attributes),
                       std::string(ir::kAutospDomain), fmt::format("{}@{}", name, op));
  }

  // What all gradients are scaled by: min(1, clip / norm), the norm being that of all of them
  // together. From zero 1 on every element is in one rank's shard, so the ranks' sums of squares
  // are summed.
  ValueId clip() {
    std::vector<ValueId> squares;
    for (size_t k = 0; k < units_.size(); ++k) {
      const ValueId gradient = mean_gradient(units_[k], gradients_[k]);
      const ValueId square = build_.binary("Mul", gradient, gradient);
      const auto axes = static_cast<int64_t>(build_.rank(gradient));
      std::vector<int64_t> all(static_cast<size_t>(axes));
      std::iota(all.begin(), all.end(), int64_t{0});
      const ValueId sum = axes == 0 ? square : build_.reduce_sum(square, all, false);
      squares.push_back(build_.cast(sum, ir::DataType::kFloat32));
    }
    ValueId total = build_.sum(std::move(squares));
    if (plan_.zero > 0 && plan_.ranks > 1) {
      total = collective("AllReduce", total, {}, {}, "gradient_norm");
    }
    const ValueId norm = build_.unary("Sqrt", total);
    out_.add_output(kGradientNorm, norm);
    // As PyTorch's clip_grad_norm_ has it.
    const ValueId ratio = build_.binary("Div", build_.scalar_like(norm, plan_.optimizer.clip_norm),
                                        build_.binary("Add", norm, build_.scalar_like(norm, 1e-6)));
    return build_.node("Min", {ratio, build_.scalar_like(norm, 1)},
                       ir::Type{build_.dtype(norm), {}});
  }

  // As it enters the update. Nothing of the size of all parameters is made at once: what the norm
  // was taken of is made again.
  ValueId clipped_gradient(size_t k) {
    if (!clip_factor_) return mean_gradient(units_[k], own_share(k));
    const ValueId gradient = mean_gradient(units_[k], gradients_[k]);
    return build_.binary("Mul", gradient, build_.cast(clip_factor_, build_.dtype(gradient)));
  }

  void update(size_t k) {
    const UpdateUnit& unit = units_[k];
    const ir::Type type{update_dtype(unit.dtype), unit.shape};
    const bool has_master = type.dtype != unit.dtype;
    UpdateOperands operands{.weight = weight(k),
                            .gradient = clipped_gradient(k),
                            .states = {},
                            .rate = rate_,
                            .step = step_};
    std::vector<std::string> names = state_names(plan_, unit.dtype);
    for (std::string& name : names) {
      name = fmt::format("{}.{}", unit.name, name);
      operands.states.push_back(out_.add_input(name, type));
    }
    if (has_master) {
      operands.weight = operands.states.front();
      operands.states.erase(operands.states.begin());
    }
    UpdateResults results = row_.update(build_, operands, plan_.optimizer);
    const ValueId weight = build_.cast(results.weight, unit.dtype);
    if (has_master) results.states.insert(results.states.begin(), results.weight);
    if (plan_.zero == 1 || plan_.zero == 2) {
      put_whole(plan_.buckets[unit.index], weight);
    } else {
      out_.add_output(unit.name + ".new", weight);
    }
    for (size_t s = 0; s < names.size(); ++s) out_.add_output(names[s] + ".new", results.states[s]);
  }

  void put_whole(const Bucket& bucket, ValueId shard) {
    ValueId flat = shard;
    if (plan_.ranks > 1) {
      flat = collective("AllGather", shard, {bucket.elements}, sizes_of(bucket), bucket.name);
    }
    for (const BucketMember& member : bucket.members) {
      const TrainedParameter& parameter = plan_.parameter(member);
      const int64_t end = member.offset + parameter.type.num_elements();
      const ValueId part = build_.slice_all(flat, {member.offset}, {end});
      out_.add_output(parameter.name + ".new", build_.reshape(part, parameter.type.shape));
    }
  }

  const TrainingPlan& plan_;
  const OptimizerRow& row_;
  int64_t rank_;
  std::vector<UpdateUnit> units_;
  ir::Graph out_;
  ir::Builder build_;
  ValueId rate_;
  ValueId step_;
  ValueId scale_;
  std::vector<ValueId> whole_;      // by parameter
  std::vector<ValueId> weights_;    // by unit, where this rank has them apart
  std::vector<ValueId> gradients_;  // by unit
  ValueId clip_factor_;             // where gradients are clipped
};

}  // namespace

ir::Graph emit_update(const TrainingPlan& plan, int64_t rank) {
  return UpdateEmitter(plan, rank).emit();
}

ir::Graph emit_accumulate(const TrainingPlan& plan, int64_t rank) {
  ir::Graph out;
  ir::Builder build(out);
  out.name = fmt::format("accumulate_rank{}", rank);
  const ValueId weight = out.add_input(kWeight, {ir::DataType::kFloat32, {}});
  const ValueId weighs_nothing = build.binary("Equal", weight, build.scalar_like(weight, 0));
  for (const UpdateUnit& unit : update_units(plan, rank)) {
    const ir::Shape shape = gradient_shape(plan, unit);
    const ValueId gradient = out.add_input(unit.gradient, {unit.gradient_dtype, shape});
    const ir::DataType dtype = update_dtype(unit.dtype);
    const ValueId sum = out.add_input(unit.gradient + ".sum", {dtype, shape});
    const ValueId term =
        build.binary("Mul", build.cast(gradient, dtype), build.cast(weight, dtype));
    // Gradients of a mean over no tokens are NaN, and so are they times zero.
    out.add_output(unit.gradient + ".sum.new",
                   build.where(weighs_nothing, sum, build.binary("Add", sum, term)));
  }
  ir::verify(out);
  return out;
}

}  // namespace autosp::transforms
