// Sharded results against whole ones.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "executor/npz.h"
#include "ir/graph.h"
#include "onnx/manifest.h"

namespace autosp::cli {

struct TensorComparison {
  std::string name;
  onnx_io::OutputRole role = onnx_io::OutputRole::kOther;
  double largest_error = 0;  // absolute
  double scale = 0;          // what the error is measured against
  double tolerance = 0;      // of largest_error / scale
  int64_t at = 0;            // element (row-major) with the largest error
  int64_t rank = 0;          // that has it
  double expected = 0;       // there
  double actual = 0;
  int64_t elements = 0;
  int64_t not_finite = 0;  // of the elements in the whole model: NaN or infinite
  ir::DataType precision = ir::DataType::kUndefined;  // see precisions()
  // A gradient that is zero in exact arithmetic: both sides hold rounding of one size.
  bool is_rounding = false;
  // Computed in 16 bits, and no further from float64 than the whole model is; or, of a training
  // curve, no further from the whole model than that is from itself a rounding away.
  bool is_as_exact = false;

  double relative_error() const { return largest_error == 0 ? 0 : largest_error / scale; }
  // Also where both sides are NaN.
  bool agrees() const { return relative_error() <= tolerance || is_rounding || is_as_exact; }
  // Of a loss or gradient that is NaN or infinite agreement says nothing; other outputs may be.
  bool proves_nothing() const { return not_finite > 0 && role != onnx_io::OutputRole::kOther; }
  bool equal() const { return agrees() && !proves_nothing(); }
};

// "equal", "equal: zero in float64", "equal: as exact", "DIFFERS" or "NOT FINITE".
const char* verdict(const TensorComparison& tensor);

// By floating output: the coarsest floating type among the values that it is computed from and that
// depend on floats fed to the graph. A float32 loss of bfloat16 activations is no more exact than
// these.
std::map<std::string, ir::DataType> precisions(const ir::Graph& graph);

// One entry per output that both sides have, in the manifest's order: the rank that is furthest
// off.
//
// The scale of a gradient is its own largest entry, or 1e-3 of the model's largest gradient where
// that is larger: a gradient that is zero in exact arithmetic (of a key's bias) is noise.
// Tolerances follow the precision of each output, its type where `precision` has none; `tolerance`
// overrides them for gradients and other tensors, and a tenth of it for the loss.
std::vector<TensorComparison> compare_outputs(const onnx_io::Manifest& manifest,
                                              const executor::Arrays& whole,
                                              const std::vector<executor::Arrays>& ranks,
                                              const std::map<std::string, ir::DataType>& precision,
                                              std::optional<double> tolerance);

// Whether some loss or gradient differs and is finite: it may differ by rounding alone.
bool may_be_rounding(const std::vector<TensorComparison>& tensors);

// Marks the losses and gradients computed in 16 bits that differ, but are no further from `exact`,
// the whole model's outputs in float64, than the whole model in 16 bits: its error is what such
// arithmetic costs, if it is a few tolerances at most.
void mark_as_exact(std::vector<TensorComparison>& tensors, const executor::Arrays& exact,
                   const executor::Arrays& whole, const std::vector<executor::Arrays>& ranks);

// Marks the gradients that differ, but of which `exact`, the whole model's outputs in float64, has
// next to nothing, while the ranks' entries are not much larger than the whole model's, or small
// beside its largest gradient.
void mark_rounding(std::vector<TensorComparison>& tensors, const executor::Arrays& exact,
                   const executor::Arrays& whole, const std::vector<executor::Arrays>& ranks);

}  // namespace autosp::cli
