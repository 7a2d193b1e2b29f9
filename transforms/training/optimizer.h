// Optimizers as graphs: what one update computes from a parameter, its gradient and its state.
//
// Adding an optimizer is a row of the table in optimizer.cpp.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ir/builder.h"

namespace autosp::transforms {

// What the user chooses. The learning rate is an input of the graph, and may change every step.
struct OptimizerSettings {
  std::string name = "sgd";
  double momentum = 0;      // sgd
  double beta1 = 0.9;       // adam, adamw
  double beta2 = 0.999;     // adam, adamw
  double epsilon = 1e-8;    // adam, adamw, adagrad: added to the root of the squares
  double weight_decay = 0;  // adamw: apart from the gradient; others: added to it, times the weight
  double clip_norm = 0;     // the most that the norm of all gradients together may be; 0: any
};

// Flat or of any shape; all of one floating type, float32 or float64.
struct UpdateOperands {
  ValueId weight;
  ValueId gradient;
  std::vector<ValueId> states;  // in the row's order
  ValueId rate;                 // a scalar of float32
  ValueId step;                 // a scalar of int64: updates so far, this one included
};
struct UpdateResults {
  ValueId weight;
  std::vector<ValueId> states;
};

struct OptimizerRow {
  std::string_view name;
  std::string_view summary;
  // Names of the states that it keeps per element, which all start at zero.
  std::vector<std::string_view> (*states)(const OptimizerSettings&);
  UpdateResults (*update)(ir::Builder&, const UpdateOperands&, const OptimizerSettings&);
};

std::span<const OptimizerRow> optimizers();
// Throws Error for a name that is not in the table.
const OptimizerRow& find_optimizer(std::string_view name);

}  // namespace autosp::transforms
