// The graphs of an update: one per rank, run after the rank graph of a step.
#pragma once

#include "ir/graph.h"
#include "transforms/training/training_plan.h"

namespace autosp::transforms {

inline constexpr const char* kLearningRate = "learning_rate";    // float32[]
inline constexpr const char* kStep = "step";                     // int64[], 1 for the first update
inline constexpr const char* kGradientScale = "gradient_scale";  // float32[], with accumulation
inline constexpr const char* kGradientNorm = "gradient_norm";    // float32[], with clipping
inline constexpr const char* kWeight = "weight";                 // float32[], of a micro-batch

// Inputs: kLearningRate, kStep, kGradientScale when micro-batches are accumulated, and for every
// update unit its parameters, gradient and states. Outputs: the same parameters and states after
// the update, "<name>.new", and kGradientNorm, before clipping, when gradients are clipped.
//
// Parameters are whole, by name, up to zero 2; gradients are the bucket's terms of this rank at
// zero 1 (summed here) and sums from zero 2 on.
ir::Graph emit_update(const TrainingPlan& plan, int64_t rank);

// Inputs: kWeight, for every unit its gradient as the rank graph gives it, and "<gradient>.sum".
// Outputs: "<gradient>.sum.new", the sum with weight * gradient added. Sums are kept in the
// update's type. Micro-batches weigh as many tokens as they have, and one without any adds nothing;
// kGradientScale is one over the sum of the weights.
ir::Graph emit_accumulate(const TrainingPlan& plan, int64_t rank);

}  // namespace autosp::transforms
