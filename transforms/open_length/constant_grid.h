// Constants that grow evenly along their axes, at any length: positions, index grids, the ends of
// sliding windows.
#pragma once

#include <optional>
#include <vector>

#include "ir/tensor.h"
#include "transforms/open_length/length_form.h"

namespace autosp::transforms {

// The same constant at several lengths.
struct ConstantSamples {
  std::vector<int64_t> units;
  std::vector<ir::Tensor> tensors;  // by length
};

// Entry `index` of a tensor; nullopt where it is no integer that a double holds.
std::optional<int64_t> integer_at(const ir::Tensor& tensor, int64_t index);

// offset + sum over the axes of strides[k] * index[k], not below `least` nor above `greatest`.
struct ConstantGrid {
  LengthForm offset;
  std::vector<LengthForm> strides;
  std::optional<LengthForm> least;
  std::optional<LengthForm> greatest;
};

// Nullopt where the samples, of one rank and not empty, are no such grid. Bounds are found along
// one axis only, and where at least three samples have entries between them.
std::optional<ConstantGrid> fit_grid(const ConstantSamples& samples);

}  // namespace autosp::transforms
