#include "transforms/open_length/constant_grid.h"

#include <algorithm>
#include <cmath>

namespace autosp::transforms {

using ir::Shape;
using ir::Tensor;

std::optional<int64_t> integer_at(const Tensor& tensor, int64_t index) {
  constexpr double kExact = 9007199254740992.0;  // 2^53
  const double value = tensor.value_as_double(index);
  if (!(std::abs(value) < kExact) || value != std::floor(value)) return std::nullopt;
  if (value == 0 && std::signbit(value)) return std::nullopt;
  return static_cast<int64_t>(value);
}

namespace {

// A grid of one length.
struct Grid {
  int64_t offset = 0;
  std::vector<int64_t> strides;
  std::optional<int64_t> least;
  std::optional<int64_t> greatest;

  int64_t at(const std::vector<int64_t>& index) const {
    int64_t value = offset;
    for (size_t k = 0; k < index.size(); ++k) value += index[k] * strides[k];
    if (greatest) value = std::min(value, *greatest);
    if (least) value = std::max(value, *least);
    return value;
  }
};

bool is_grid(const Tensor& tensor, const Grid& grid) {
  const Shape& shape = tensor.shape();
  std::vector<int64_t> index(shape.size(), 0);
  for (int64_t at = 0; at < tensor.num_elements(); ++at) {
    if (integer_at(tensor, at) != grid.at(index)) return false;
    for (size_t k = shape.size(); k-- > 0;) {
      if (++index[k] < shape[k]) break;
      index[k] = 0;
    }
  }
  return true;
}

// Elements between neighbours along each axis.
std::vector<int64_t> steps_of(const Shape& shape) {
  std::vector<int64_t> steps(shape.size(), 1);
  for (size_t k = shape.size(); k-- > 1;) steps[k - 1] = steps[k] * shape[k];
  return steps;
}

std::optional<Grid> unbounded(const Tensor& tensor) {
  const auto offset = integer_at(tensor, 0);
  if (!offset) return std::nullopt;
  const Shape& shape = tensor.shape();
  const std::vector<int64_t> steps = steps_of(shape);
  Grid grid{.offset = *offset, .strides = std::vector<int64_t>(shape.size(), 0)};
  for (size_t k = 0; k < shape.size(); ++k) {
    if (shape[k] == 1) continue;
    const auto next = integer_at(tensor, steps[k]);
    if (!next) return std::nullopt;
    grid.strides[k] = *next - *offset;
  }
  return is_grid(tensor, grid) ? std::optional(grid) : std::nullopt;
}

// Bounded by its least or its greatest entry, along one axis. Nullopt too where no two neighbours
// are between the bounds.
std::optional<Grid> bounded(const Tensor& tensor, size_t axis, bool low, bool high) {
  const int64_t step = steps_of(tensor.shape())[axis];
  std::vector<int64_t> entries;
  for (int64_t k = 0; k < tensor.shape()[axis]; ++k) {
    const auto entry = integer_at(tensor, k * step);
    if (!entry) return std::nullopt;
    entries.push_back(*entry);
  }
  const auto [least, greatest] = std::ranges::minmax(entries);
  const auto free = [&](int64_t entry) {
    return (!low || entry > least) && (!high || entry < greatest);
  };
  for (size_t k = 0; k + 1 < entries.size(); ++k) {
    if (!free(entries[k]) || !free(entries[k + 1])) continue;
    Grid grid{.strides = std::vector<int64_t>(tensor.shape().size(), 0)};
    grid.strides[axis] = entries[k + 1] - entries[k];
    grid.offset = entries[k] - grid.strides[axis] * static_cast<int64_t>(k);
    if (low) grid.least = least;
    if (high) grid.greatest = greatest;
    return grid;
  }
  return std::nullopt;
}

template <typename Read>
std::optional<LengthForm> form(const std::vector<int64_t>& units, const std::vector<Grid>& grids,
                               Read&& read) {
  std::vector<int64_t> values;
  for (const Grid& grid : grids) values.push_back(read(grid));
  return fit(units, values);
}

std::optional<ConstantGrid> forms(const std::vector<int64_t>& units,
                                  const std::vector<Grid>& grids) {
  ConstantGrid result;
  const auto offset = form(units, grids, [](const Grid& grid) { return grid.offset; });
  if (!offset) return std::nullopt;
  result.offset = *offset;
  for (size_t k = 0; k < grids[0].strides.size(); ++k) {
    const auto stride = form(units, grids, [k](const Grid& grid) { return grid.strides[k]; });
    if (!stride) return std::nullopt;
    result.strides.push_back(*stride);
  }
  if (grids[0].least) {
    result.least = form(units, grids, [](const Grid& grid) { return *grid.least; });
    if (!result.least) return std::nullopt;
  }
  if (grids[0].greatest) {
    result.greatest = form(units, grids, [](const Grid& grid) { return *grid.greatest; });
    if (!result.greatest) return std::nullopt;
  }
  return result;
}

bool holds(const ConstantGrid& forms, const ConstantSamples& samples) {
  for (size_t k = 0; k < samples.units.size(); ++k) {
    const int64_t units = samples.units[k];
    Grid grid{.offset = forms.offset.at(units)};
    for (const LengthForm& stride : forms.strides) grid.strides.push_back(stride.at(units));
    if (forms.least) grid.least = forms.least->at(units);
    if (forms.greatest) grid.greatest = forms.greatest->at(units);
    if (!is_grid(samples.tensors[k], grid)) return false;
  }
  return true;
}

std::optional<ConstantGrid> fit_bounded(const ConstantSamples& samples, size_t axis, bool low,
                                        bool high) {
  std::vector<int64_t> units;
  std::vector<Grid> grids;
  for (size_t k = 0; k < samples.units.size(); ++k) {
    auto grid = bounded(samples.tensors[k], axis, low, high);
    if (!grid) continue;
    units.push_back(samples.units[k]);
    grids.push_back(std::move(*grid));
  }
  constexpr size_t kFewest = 3;
  if (grids.size() < kFewest) return std::nullopt;
  auto result = forms(units, grids);
  return result && holds(*result, samples) ? result : std::nullopt;
}

}  // namespace

std::optional<ConstantGrid> fit_grid(const ConstantSamples& samples) {
  const auto empty = [](const Tensor& tensor) { return tensor.num_elements() == 0; };
  if (std::ranges::any_of(samples.tensors, empty)) return std::nullopt;
  std::vector<Grid> grids;
  for (const Tensor& tensor : samples.tensors) {
    auto grid = unbounded(tensor);
    if (!grid) break;
    grids.push_back(std::move(*grid));
  }
  if (grids.size() == samples.tensors.size()) return forms(samples.units, grids);
  for (size_t axis = 0; axis < samples.tensors[0].shape().size(); ++axis) {
    for (const auto& [low, high] : {std::pair(true, false), {false, true}, {true, true}}) {
      if (auto result = fit_bounded(samples, axis, low, high)) return result;
    }
  }
  return std::nullopt;
}

}  // namespace autosp::transforms
