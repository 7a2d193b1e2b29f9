#include "compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace autosp::cli {

namespace {

using onnx_io::ManifestOutput;
using onnx_io::OutputRole;

// Of the largest gradient. float32 rounding leaves up to 1e-7 of it in a gradient that is zero in
// exact arithmetic, and 1e-4 of the floor must allow that.
constexpr double kNoiseFloor = 1e-3;

// Of values that sums over some thousand terms have reached; the loss averages over tokens.
double type_tolerance(ir::DataType dtype) {
  switch (dtype) {
    case ir::DataType::kFloat64:
      return 1e-10;
    case ir::DataType::kFloat16:
      return 1e-2;
    case ir::DataType::kBFloat16:
      return 5e-2;
    case ir::DataType::kFloat32:
      return 1e-4;
    default:
      return 0;
  }
}

struct Summary {
  double largest = 0;  // of the finite elements
  int64_t not_finite = 0;
};

Summary summary_of(const ir::Tensor& tensor) {
  Summary result;
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    const double value = std::abs(tensor.value_as_double(k));
    if (std::isfinite(value)) {
      result.largest = std::max(result.largest, value);
    } else {
      ++result.not_finite;
    }
  }
  return result;
}

// The larger error; what is not a number is the largest of all.
void compare(const ir::Tensor& whole, const ir::Tensor& part, int64_t rank,
             TensorComparison& result) {
  if (whole.type() != part.type()) {
    throw Error("output '{}' is {} on rank {}, but {} in the whole model", result.name,
                ir::to_string(part.type()), rank, ir::to_string(whole.type()))
        .note("outputs are whole on every rank")
        .help("shard the model again");
  }
  for (int64_t k = 0; k < whole.num_elements(); ++k) {
    const double expected = whole.value_as_double(k);
    const double actual = part.value_as_double(k);
    // What is not a number in the whole model (no valid token, say) must not be one here either;
    // the report tells such agreement from equality.
    const bool same = expected == actual || (std::isnan(expected) && std::isnan(actual));
    double error = same ? 0 : std::abs(expected - actual);
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    if (error > result.largest_error) {
      result.largest_error = error;
      result.at = k;
      result.rank = rank;
      result.expected = expected;
      result.actual = actual;
    }
  }
}

}  // namespace

const char* verdict(const TensorComparison& tensor) {
  if (!tensor.agrees()) return "DIFFERS";
  if (tensor.is_rounding) return "equal: zero in float64";
  if (tensor.is_as_exact) return "equal: as exact";
  return tensor.proves_nothing() ? "NOT FINITE" : "equal";
}

std::map<std::string, ir::DataType> precisions(const ir::Graph& graph) {
  // By value; undefined where it does not depend on floats that are fed.
  std::vector<ir::DataType> precision(graph.values().size(), ir::DataType::kUndefined);
  for (ValueId input : graph.inputs()) {
    const ir::DataType type = graph.type(input).dtype;
    if (is_floating(type)) precision[input.index()] = type;
  }
  const auto coarser = [](ir::DataType a, ir::DataType b) {
    return type_tolerance(a) > type_tolerance(b) ? a : b;
  };
  for (const ir::Node& node : graph.nodes()) {
    ir::DataType own = ir::DataType::kUndefined;
    for (ValueId input : node.inputs) {
      if (input) own = coarser(precision[input.index()], own);
    }
    if (own == ir::DataType::kUndefined) continue;
    for (ValueId output : node.outputs) {
      if (output) precision[output.index()] = coarser(graph.type(output).dtype, own);
    }
  }
  std::map<std::string, ir::DataType> result;
  for (const ir::Output& output : graph.outputs()) {
    const ir::DataType type = precision[output.value.index()];
    if (is_floating(graph.type(output.value).dtype) && is_floating(type))
      result[output.name] = type;
  }
  return result;
}

std::vector<TensorComparison> compare_outputs(const onnx_io::Manifest& manifest,
                                              const executor::Arrays& whole,
                                              const std::vector<executor::Arrays>& ranks,
                                              const std::map<std::string, ir::DataType>& precision,
                                              std::optional<double> tolerance) {
  double largest_gradient = 0;
  for (const ManifestOutput& output : manifest.outputs) {
    const auto found = whole.find(output.name);
    if (output.role != OutputRole::kGradient || found == whole.end()) continue;
    largest_gradient = std::max(largest_gradient, summary_of(found->second).largest);
  }
  std::vector<TensorComparison> results;
  for (const ManifestOutput& output : manifest.outputs) {
    const auto expected = whole.find(output.name);
    if (expected == whole.end()) continue;
    TensorComparison result{.name = output.name, .role = output.role};
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      const auto actual = ranks[rank].find(output.name);
      if (actual == ranks[rank].end()) {
        throw Error("rank {} has no output '{}'", rank, output.name)
            .note("the manifest lists it")
            .help("shard the model again");
      }
      compare(expected->second, actual->second, static_cast<int64_t>(rank), result);
    }
    const Summary summary = summary_of(expected->second);
    result.elements = expected->second.num_elements();
    result.not_finite = summary.not_finite;
    result.scale = summary.largest;
    if (output.role == OutputRole::kGradient) {
      result.scale = std::max(result.scale, kNoiseFloor * largest_gradient);
    }
    result.scale = std::max(result.scale, std::numeric_limits<double>::min());
    const auto type = precision.find(output.name);
    result.precision = type == precision.end() ? output.type.dtype : type->second;
    result.tolerance = tolerance.value_or(type_tolerance(result.precision));
    if (output.role == OutputRole::kLoss) result.tolerance /= 10;
    results.push_back(std::move(result));
  }
  return results;
}

namespace {

double largest_gradient(const std::vector<TensorComparison>& tensors,
                        const executor::Arrays& whole) {
  double largest = 0;
  for (const TensorComparison& tensor : tensors) {
    if (tensor.role != OutputRole::kGradient) continue;
    largest = std::max(largest, summary_of(whole.at(tensor.name)).largest);
  }
  return largest;
}

bool differs(const TensorComparison& tensor) {
  return tensor.role != OutputRole::kOther && !tensor.agrees() && tensor.not_finite == 0;
}

double largest_difference(const ir::Tensor& a, const ir::Tensor& b) {
  double largest = 0;
  for (int64_t k = 0; k < a.num_elements(); ++k) {
    const double difference = std::abs(a.value_as_double(k) - b.value_as_double(k));
    largest = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                     : std::max(largest, difference);
  }
  return largest;
}

}  // namespace

bool may_be_rounding(const std::vector<TensorComparison>& tensors) {
  return std::ranges::any_of(tensors, differs);
}

void mark_as_exact(std::vector<TensorComparison>& tensors, const executor::Arrays& exact,
                   const executor::Arrays& whole, const std::vector<executor::Arrays>& ranks) {
  constexpr double kFew = 4;  // more, and it is not rounding
  constexpr double kNoFurther = 2;
  const double largest = largest_gradient(tensors, whole);
  for (TensorComparison& tensor : tensors) {
    if (!differs(tensor) || element_size(tensor.precision) != 2) continue;
    const ir::Tensor& truth = exact.at(tensor.name);
    const double tolerance = tensor.tolerance * tensor.scale;
    const double error = largest_difference(whole.at(tensor.name), truth);
    // Small gradients hold what is lost of large ones that they are sums of.
    const double unit = tensor.precision == ir::DataType::kBFloat16 ? 0x1p-8 : 0x1p-11;
    const double share =
        tensor.role == OutputRole::kGradient ? std::min(unit, tensor.tolerance) : 0;
    if (!(error <= kFew * std::max(tolerance, share * largest))) continue;
    tensor.is_as_exact = std::ranges::all_of(ranks, [&](const executor::Arrays& rank) {
      return largest_difference(rank.at(tensor.name), truth) <=
             std::max(kNoFurther * error, tolerance);
    });
  }
}

void mark_rounding(std::vector<TensorComparison>& tensors, const executor::Arrays& exact,
                   const executor::Arrays& whole, const std::vector<executor::Arrays>& ranks) {
  constexpr double kNextToNothing = 1e-3;  // of what float32 has, which is then all rounding
  constexpr double kNotMuchLarger = 8;
  constexpr double kSmall = 1e-6;  // of the largest gradient
  const double largest = largest_gradient(tensors, whole);
  for (TensorComparison& tensor : tensors) {
    if (!differs(tensor) || tensor.role != OutputRole::kGradient) continue;
    const double rounding = summary_of(whole.at(tensor.name)).largest;
    if (rounding == 0) continue;  // no rounding, where a product with zeros was exact
    if (!(summary_of(exact.at(tensor.name)).largest <= kNextToNothing * rounding)) continue;
    tensor.is_rounding = std::ranges::all_of(ranks, [&](const executor::Arrays& rank) {
      const Summary there = summary_of(rank.at(tensor.name));
      return there.not_finite == 0 &&
             there.largest <= std::max(kNotMuchLarger * rounding, kSmall * largest);
    });
  }
}

}  // namespace autosp::cli
