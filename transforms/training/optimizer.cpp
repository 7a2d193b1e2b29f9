#include "transforms/training/optimizer.h"

#include <fmt/ranges.h>

#include "base/error.h"
#include "ir/operator_traits.h"

namespace autosp::transforms {

namespace {

using ir::Builder;

using Names = std::vector<std::string_view>;

// One of ONNX's training operators, which all take rate, count, weight, gradient and states.
UpdateResults training_node(Builder& build, const std::string& op, const UpdateOperands& operands,
                            ir::Attributes attributes) {
  std::vector<ValueId> inputs = {operands.rate, operands.step, operands.weight, operands.gradient};
  inputs.insert(inputs.end(), operands.states.begin(), operands.states.end());
  const ir::Type type = build.graph().type(operands.weight);
  const std::vector<ValueId> results =
      build.node(op, std::move(inputs), std::vector<ir::Type>(operands.states.size() + 1, type),
                 std::move(attributes), std::string(ir::kTrainingDomain));
  return {results[0], {results.begin() + 1, results.end()}};
}

float narrow(double value) { return static_cast<float>(value); }

// The learning rate in the weight's type.
ValueId rate_of(Builder& build, const UpdateOperands& operands) {
  return build.cast(operands.rate, build.dtype(operands.weight));
}

Names no_states(const OptimizerSettings&) { return {}; }

Names sgd_states(const OptimizerSettings& settings) {
  return settings.momentum == 0 ? no_states(settings) : Names{"momentum"};
}

// w - rate * (g + decay * w); with momentum, ONNX's operator.
UpdateResults sgd(Builder& build, const UpdateOperands& operands,
                  const OptimizerSettings& settings) {
  if (settings.momentum != 0) {
    return training_node(build, "Momentum", operands,
                         {{"alpha", narrow(settings.momentum)},
                          {"beta", 1.0F},
                          {"mode", std::string("standard")},
                          {"norm_coefficient", narrow(settings.weight_decay)}});
  }
  ValueId gradient = operands.gradient;
  if (settings.weight_decay != 0) {
    const ValueId decay = build.scalar_like(operands.weight, settings.weight_decay);
    gradient = build.binary("Add", gradient, build.binary("Mul", operands.weight, decay));
  }
  const ValueId change = build.binary("Mul", gradient, rate_of(build, operands));
  return {build.binary("Sub", operands.weight, change), {}};
}

Names adam_states(const OptimizerSettings&) { return {"mean", "square"}; }

UpdateResults adam_node(Builder& build, const UpdateOperands& operands,
                        const OptimizerSettings& settings, double norm_coefficient) {
  return training_node(build, "Adam", operands,
                       {{"alpha", narrow(settings.beta1)},
                        {"beta", narrow(settings.beta2)},
                        {"epsilon", narrow(settings.epsilon)},
                        {"norm_coefficient", narrow(norm_coefficient)},
                        {"norm_coefficient_post", 0.0F}});
}

UpdateResults adam(Builder& build, const UpdateOperands& operands,
                   const OptimizerSettings& settings) {
  return adam_node(build, operands, settings, settings.weight_decay);
}

// 1 - rate * decay, by which a weight shrinks whatever its gradient is (Loshchilov and Hutter,
// 2019). The operator's own norm_coefficient_post does not know the rate.
ValueId shrunk(Builder& build, ValueId weight, const UpdateOperands& operands,
               const OptimizerSettings& settings) {
  if (settings.weight_decay == 0) return weight;
  const ValueId rate = rate_of(build, operands);
  const ValueId factor =
      build.binary("Sub", build.scalar_like(rate, 1),
                   build.binary("Mul", rate, build.scalar_like(rate, settings.weight_decay)));
  return build.binary("Mul", weight, factor);
}

UpdateResults adamw(Builder& build, const UpdateOperands& operands,
                    const OptimizerSettings& settings) {
  UpdateOperands decayed = operands;
  decayed.weight = shrunk(build, operands.weight, operands, settings);
  return adam_node(build, decayed, settings, 0);
}

UpdateResults adamw_after(Builder& build, const UpdateOperands& operands,
                          const OptimizerSettings& settings) {
  UpdateResults results = adam_node(build, operands, settings, 0);
  results.weight = shrunk(build, results.weight, operands, settings);
  return results;
}

Names adagrad_states(const OptimizerSettings&) { return {"squares"}; }

UpdateResults adagrad(Builder& build, const UpdateOperands& operands,
                      const OptimizerSettings& settings) {
  return training_node(build, "Adagrad", operands,
                       {{"decay_factor", 0.0F},
                        {"epsilon", narrow(settings.epsilon)},
                        {"norm_coefficient", narrow(settings.weight_decay)}});
}

constexpr OptimizerRow kRows[] = {
    {"sgd", "gradient descent, with --momentum if given", sgd_states, sgd},
    {"adam", "Adam", adam_states, adam},
    {"adamw", "Adam whose weight decay is apart from the gradient", adam_states, adamw},
    {"adamw_after", "the same, with the decay after the update (as Hugging Face had it)",
     adam_states, adamw_after},
    {"adagrad", "Adagrad", adagrad_states, adagrad},
};

}  // namespace

std::span<const OptimizerRow> optimizers() { return kRows; }

const OptimizerRow& find_optimizer(std::string_view name) {
  std::vector<std::string> names;
  for (const OptimizerRow& row : kRows) {
    if (row.name == name) return row;
    names.emplace_back(row.name);
  }
  const std::string near = nearest_name(name, names);
  throw Error("there is no optimizer named '{}'", name)
      .note(fmt::format("the optimizers are {}", fmt::join(names, ", ")))
      .help(near.empty() ? "give one of these" : fmt::format("did you mean '{}'?", near));
}

}  // namespace autosp::transforms
