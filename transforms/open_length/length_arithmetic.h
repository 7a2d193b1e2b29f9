// Nodes that compute numbers and constants from the length of the sequence.
//
// They stand in phase "length": who reads the graph at a known length evaluates them, so that a
// graph without them remains.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "ir/builder.h"
#include "transforms/open_length/constant_grid.h"
#include "transforms/open_length/length_form.h"

namespace autosp::transforms {

class LengthArithmetic {
 public:
  // `source` has the extent `extent`, linear in the units and not constant, along `axis`. Types are
  // those of a graph at `reference` units.
  LengthArithmetic(ir::Graph& graph, int64_t reference, ValueId source, size_t axis,
                   LengthForm extent)
      : graph_(graph),
        build_(graph),
        reference_(reference),
        source_(source),
        axis_(axis),
        extent_(extent) {}

  // int64 [forms]
  ValueId numbers(const std::vector<LengthForm>& forms);

  // The constant at any length. Nullopt when it is none of: integers, or their reciprocals, that
  // are a form each; one number in every entry; integers that grow evenly along every axis
  // (positions, index grids), within bounds (the ends of windows).
  std::optional<ValueId> constant(const ConstantSamples& samples);

  // Shapes of what was made here, where they are not constant.
  const std::map<ValueId, std::vector<LengthForm>>& shapes() const { return shapes_; }

 private:
  ValueId units();
  ValueId node(const std::string& op, std::vector<ValueId> inputs, ir::DataType dtype,
               const std::vector<LengthForm>& shape, ir::Attributes attributes = {});
  ValueId scalar(const LengthForm& form);
  ValueId entries(const std::vector<LengthForm>& forms, ir::DataType dtype, const ir::Shape& shape);
  std::optional<ValueId> few_entries(const ConstantSamples& samples);
  std::optional<ValueId> reciprocals(const ConstantSamples& samples);
  std::optional<ValueId> uniform(const ConstantSamples& samples,
                                 const std::vector<LengthForm>& shape);
  std::optional<ValueId> grid(const ConstantSamples& samples, const std::vector<LengthForm>& shape);
  ValueId expanded(ValueId x, const std::vector<LengthForm>& shape);

  ir::Graph& graph_;
  ir::Builder build_;
  int64_t reference_;
  ValueId source_;
  size_t axis_;
  LengthForm extent_;
  ValueId units_;
  std::map<std::vector<LengthForm>, ValueId> numbers_;
  std::map<ValueId, std::vector<LengthForm>> shapes_;
};

}  // namespace autosp::transforms
