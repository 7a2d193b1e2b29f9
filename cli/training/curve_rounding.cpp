#include "training/curve_rounding.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <set>

namespace autosp::cli {

using executor::Arrays;
using onnx_io::Manifest;

namespace {

// Gradients that are next to nothing beside the largest, at every step: rounding.
struct Rounding {
  std::set<std::string> gradients;
  double most = 0;  // the largest entry of all gradients
};
Rounding rounding_of(const Manifest& manifest, const std::vector<Arrays>& outputs) {
  constexpr double kNothing = 1e-5;
  Rounding result;
  std::map<std::string, double> largest;
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    if (output.role != onnx_io::OutputRole::kGradient) continue;
    double& entry = largest[output.name];
    for (const Arrays& step : outputs) {
      const ir::Tensor& gradient = step.at(output.name);
      for (int64_t i = 0; i < gradient.num_elements(); ++i) {
        entry = std::max(entry, std::abs(gradient.value_as_double(i)));
      }
    }
    result.most = std::max(result.most, entry);
  }
  for (const auto& [name, entry] : largest) {
    if (entry < kNothing * result.most) result.gradients.insert(name);
  }
  return result;
}

// The largest share that rounding has in entry i of a gradient, over the steps.
double share_of_rounding(const std::string& gradient, int64_t i, const std::vector<Arrays>& steps,
                         const Differences& differences) {
  const std::vector<double>& difference = differences.at(gradient);
  double share = 0;
  for (size_t step = 0; step < steps.size(); ++step) {
    if (difference[step] == 0) continue;
    const double entry = std::abs(steps[step].at(gradient).value_as_double(i));
    share = std::max(share, entry == 0 ? 1 : difference[step] / entry);
  }
  return std::min(share, 1.0);
}

// Optimizers that divide by a gradient's size (adam) move an entry whose gradient is rounding as
// far as any other, there or back; of a key's bias, say, which is a third of one joined with
// queries' and values'. `moved` is how far an entry moves at most; the share of a gradient that is
// rounding decides what of it may differ.
bool differs_by_rounding(const TensorComparison& tensor, const ir::Tensor& expected,
                         const std::vector<Arrays>& ranks, double moved,
                         const std::function<double(int64_t)>& share) {
  if (tensor.relative_error() <= tensor.tolerance) return false;
  const double allowed = tensor.tolerance * tensor.scale;
  for (const Arrays& rank : ranks) {
    const ir::Tensor& actual = rank.at(tensor.name);
    for (int64_t i = 0; i < expected.num_elements(); ++i) {
      const double error = std::abs(actual.value_as_double(i) - expected.value_as_double(i));
      if (error <= allowed) continue;
      if (!(error <= 2 * moved * share(i))) return false;
    }
  }
  return true;
}

// How far an entry of some parameter has moved at most.
double furthest_move(const TrainingJob& job, const Arrays& after) {
  double furthest = 0;
  for (const transforms::TrainedParameter& parameter : job.plan.parameters) {
    const ir::Tensor& from = job.state.at(parameter.name);
    const ir::Tensor& to = after.at(parameter.name);
    for (int64_t i = 0; i < from.num_elements(); ++i) {
      furthest = std::max(furthest, std::abs(to.value_as_double(i) - from.value_as_double(i)));
    }
  }
  return furthest;
}

double largest_difference(const ir::Tensor& a, const ir::Tensor& b) {
  double largest = 0;
  for (int64_t i = 0; i < a.num_elements(); ++i) {
    largest = std::max(largest, std::abs(a.value_as_double(i) - b.value_as_double(i)));
  }
  return largest;
}

}  // namespace

void note_differences(const std::vector<TensorComparison>& tensors, size_t step,
                      Differences& differences) {
  for (const TensorComparison& tensor : tensors) {
    if (tensor.role != onnx_io::OutputRole::kGradient) continue;
    std::vector<double>& steps = differences[tensor.name];
    if (steps.size() <= step) steps.resize(step + 1, 0);
    steps[step] = std::max(steps[step], tensor.largest_error);
  }
}

void mark_rounding(const TrainingJob& job, const Trajectory& whole, const Differences& differences,
                   const std::vector<Arrays>& rank_parameters, Curves& curves) {
  constexpr double kRounding = 1e-6;  // of the largest gradient: what sums in float32 leave
  const Rounding rounding = rounding_of(job.manifest, whole.steps);
  for (TensorComparison& tensor : curves.tensors) {
    tensor.is_rounding = rounding.gradients.contains(tensor.name) &&
                         tensor.largest_error <= kRounding * rounding.most;
  }
  std::map<std::string, std::string> gradient_of;
  for (const onnx_io::ManifestOutput& output : job.manifest.outputs) {
    if (output.role == onnx_io::OutputRole::kGradient) gradient_of[output.parameter] = output.name;
  }
  const double moved = furthest_move(job, whole.parameters);
  for (TensorComparison& tensor : curves.parameters) {
    const std::string& gradient = gradient_of.at(tensor.name);
    tensor.is_rounding = differs_by_rounding(
        tensor, whole.parameters.at(tensor.name), rank_parameters, moved,
        [&](int64_t i) { return share_of_rounding(gradient, i, whole.steps, differences); });
  }
}

Arrays nudged(const Arrays& state) {
  constexpr double kUnits = 4;
  std::minstd_rand random(1);
  Arrays result = state;
  for (auto& [name, tensor] : result) {
    if (tensor.type().dtype != ir::DataType::kFloat32) continue;
    std::vector<float> entries(tensor.values<float>().begin(), tensor.values<float>().end());
    for (float& entry : entries) {
      const double sign = random() % 2 == 0 ? 1 : -1;
      entry = static_cast<float>(entry * (1 + sign * kUnits * 0x1p-23));
    }
    tensor = ir::Tensor::from_values<float>(tensor.shape(), entries);
  }
  return result;
}

void mark_sensitive(const Trajectory& whole, const Trajectory& nudged, Curves& curves) {
  constexpr double kFew = 4;
  for (size_t k = 0; k < curves.tensors.size(); ++k) {
    TensorComparison& tensor = curves.tensors[k];
    if (tensor.agrees()) continue;
    double allowed = 0;
    for (size_t step = 0; step < static_cast<size_t>(curves.steps[k]); ++step) {
      allowed = std::max(allowed, largest_difference(whole.steps[step].at(tensor.name),
                                                     nudged.steps[step].at(tensor.name)));
    }
    tensor.is_as_exact = tensor.largest_error <= kFew * allowed;
  }
  for (TensorComparison& tensor : curves.parameters) {
    if (tensor.agrees()) continue;
    const double allowed =
        largest_difference(whole.parameters.at(tensor.name), nudged.parameters.at(tensor.name));
    tensor.is_as_exact = tensor.largest_error <= kFew * allowed;
  }
}

}  // namespace autosp::cli
