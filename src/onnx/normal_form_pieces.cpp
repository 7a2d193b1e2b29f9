// Normal forms of slices, pads and splits: bounds are known, explicit and in range.
#include "onnx/normal_form_rules.h"

#include <algorithm>

namespace autosp::onnx_io {

namespace {

using ir::Shape;

// Bounds as numpy reads them, made canonical: 0 <= begin <= end <= extent for positive steps. For
// negative ones, an end before the first entry is written -extent-1, as ONNX needs it.
void clamp_bounds(int64_t extent, int64_t step, int64_t& begin, int64_t& end) {
  const auto wrap = [&](int64_t bound) { return bound < 0 ? bound + extent : bound; };
  if (step > 0) {
    begin = std::clamp<int64_t>(wrap(begin), 0, extent);
    end = std::clamp<int64_t>(wrap(end), begin, std::max(begin, extent));
    return;
  }
  begin = std::clamp<int64_t>(wrap(begin), 0, std::max<int64_t>(extent - 1, 0));
  end = end < -extent ? -1 : std::clamp<int64_t>(wrap(end), -1, extent - 1);
  if (end == -1) end = -extent - 1;
}

Values slice(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const Shape& shape = emitter.shape(x);
  auto begins = take_ints(emitter, operation, "starts", 1);
  auto ends = take_ints(emitter, operation, "ends", 2);
  if (!begins || !ends || begins->size() != ends->size()) {
    throw Error("node '{}' needs as many starts as ends", operation.describe());
  }
  auto axes = take_ints(emitter, operation, "axes", 3);
  if (!axes) axes = iota(begins->size());
  axes = checked_axes(operation, *std::move(axes), shape.size());
  auto steps = take_ints(emitter, operation, "steps", 4);
  if (!steps) steps.emplace(begins->size(), 1);
  if (axes->size() != begins->size() || steps->size() != begins->size()) {
    throw Error("node '{}' has {} starts, {} axes and {} steps", operation.describe(),
                begins->size(), axes->size(), steps->size());
  }
  std::vector<int64_t> order = iota(axes->size());
  std::ranges::sort(order, {}, [&](int64_t k) { return (*axes)[static_cast<size_t>(k)]; });
  std::vector<int64_t> cut_begins;
  std::vector<int64_t> cut_ends;
  std::vector<int64_t> cut_axes;
  std::vector<int64_t> cut_steps;
  for (int64_t position : order) {
    const auto k = static_cast<size_t>(position);
    const int64_t extent = shape[static_cast<size_t>((*axes)[k])];
    if ((*steps)[k] == 0) throw Error("node '{}' has step 0", operation.describe());
    clamp_bounds(extent, (*steps)[k], (*begins)[k], (*ends)[k]);
    if ((*begins)[k] == 0 && (*ends)[k] == extent && (*steps)[k] == 1) continue;
    cut_begins.push_back((*begins)[k]);
    cut_ends.push_back((*ends)[k]);
    cut_axes.push_back((*axes)[k]);
    cut_steps.push_back((*steps)[k]);
  }
  if (cut_axes.empty()) return identity(emitter, operation);
  const bool strided = std::ranges::any_of(cut_steps, [](int64_t step) { return step != 1; });
  operation.inputs = {x, emitter.int64s(std::move(cut_begins)), emitter.int64s(std::move(cut_ends)),
                      emitter.int64s(std::move(cut_axes))};
  if (strided) operation.inputs.push_back(emitter.int64s(std::move(cut_steps)));
  return std::nullopt;
}

Values pad(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const size_t rank = emitter.rank(x);
  const bool has_inputs = operation.version >= 11;
  auto pads = take_ints(emitter, operation, "pads", 1);
  if (!pads) throw Error("node '{}' has no pads", operation.describe());
  auto axes = has_inputs && operation.input(3) ? take_ints(emitter, operation, "axes", 3)
                                               : std::optional(iota(rank));
  axes = checked_axes(operation, *std::move(axes), rank);
  if (pads->size() != 2 * axes->size()) {
    throw Error("node '{}' has {} pads for {} axes", operation.describe(), pads->size(),
                axes->size());
  }
  std::vector<int64_t> full(2 * rank, 0);
  for (size_t k = 0; k < axes->size(); ++k) {
    const auto axis = static_cast<size_t>((*axes)[k]);
    full[axis] = (*pads)[k];
    full[rank + axis] = (*pads)[axes->size() + k];
  }
  ValueId fill = has_inputs ? operation.input(2) : ValueId();
  if (const float value = operation.attributes.get_float("value", 0); value != 0) {
    fill = emitter.constant(ir::Tensor::scalar(emitter.dtype(x), value));
  }
  operation.attributes.erase("value");
  if (operation.attributes.get_string("mode", "constant") == "constant") {
    operation.attributes.erase("mode");
  }
  if (std::ranges::all_of(full, [](int64_t count) { return count == 0; })) {
    return identity(emitter, operation);
  }
  operation.inputs = {x, emitter.int64s(std::move(full))};
  if (fill) operation.inputs.push_back(fill);
  return std::nullopt;
}

Values split(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const int64_t axis =
      checked_axis(operation, operation.attributes.get_int("axis", 0), emitter.rank(x));
  const int64_t extent = emitter.shape(x)[static_cast<size_t>(axis)];
  auto sizes = take_ints(emitter, operation, "split", 1);
  const auto pieces = static_cast<int64_t>(operation.results.size());
  if (!sizes) {
    // The last piece is the smaller one when the extent does not divide.
    const int64_t chunk = (extent + pieces - 1) / pieces;
    sizes.emplace(static_cast<size_t>(pieces), chunk);
    sizes->back() = extent - chunk * (pieces - 1);
  }
  int64_t total = 0;
  for (int64_t size : *sizes) total += size;
  if (total != extent || static_cast<int64_t>(sizes->size()) != pieces || sizes->back() < 0) {
    throw Error("node '{}' splits an extent of {} into {} for {} results", operation.describe(),
                extent, ir::to_string(*sizes), pieces);
  }
  operation.attributes = {{"axis", axis}};
  operation.inputs = {x, emitter.int64s(*std::move(sizes))};
  return std::nullopt;
}

// Positions beyond a table's end are found here, not in the run: a sequence may be longer than the
// model has positions for.
Values gather(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const auto axis = static_cast<size_t>(
      checked_axis(operation, operation.attributes.get_int("axis", 0), emitter.rank(x)));
  const int64_t extent = emitter.shape(x)[axis];
  const auto indices = emitter.graph().constant_ints(operand(operation, 1));
  if (!indices) return std::nullopt;
  const auto outside = std::ranges::find_if(
      *indices, [extent](int64_t index) { return index < -extent || index >= extent; });
  if (outside == indices->end()) return std::nullopt;
  throw Error("node '{}' takes entry {} along axis {} of '{}', of shape {}", operation.describe(),
              *outside, axis, emitter.graph().name_of(x), ir::to_string(emitter.shape(x)))
      .note(fmt::format("it has the entries 0 to {} there", extent - 1))
      .help("if they are positions, the sequence is longer than the model has been made for");
}

constexpr RuleRow kRules[] = {
    {"Gather", gather},
    {"Slice", slice},
    {"Pad", pad},
    {"Split", split},
};

}  // namespace

std::span<const RuleRow> piece_rules() { return kRules; }

}  // namespace autosp::onnx_io
