#include "training/curve_rounding.h"

#include <algorithm>
#include <cmath>
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

// Optimizers that divide by a gradient's size (adam) move an entry whose gradient is rounding as
// far as any other, there or back; of a key's bias, say, which is a third of one joined with
// queries' and values'. `moved` is how far an entry moves at most; the share of a gradient that is
// rounding decides what of it may differ.
bool differs_by_rounding(const TensorComparison& tensor, const ir::Tensor& expected,
                         const std::vector<Arrays>& ranks, double moved,
                         const std::vector<float>& shares) {
  if (tensor.relative_error() <= tensor.tolerance) return false;
  const double allowed = tensor.tolerance * tensor.scale;
  for (const Arrays& rank : ranks) {
    const ir::Tensor& actual = rank.at(tensor.name);
    for (int64_t i = 0; i < expected.num_elements(); ++i) {
      const double error = std::abs(actual.value_as_double(i) - expected.value_as_double(i));
      if (error <= allowed) continue;
      if (!(error <= 2 * moved * shares[static_cast<size_t>(i)])) return false;
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
                      const Arrays& whole, const Arrays& rank, Differences& differences) {
  for (const TensorComparison& tensor : tensors) {
    std::vector<Differences::Step>& steps = differences.steps[tensor.name];
    if (steps.size() <= step) steps.resize(step + 1);
    steps[step].error = std::max(steps[step].error, tensor.largest_error);
    steps[step].allowed = tensor.tolerance * tensor.scale;
    if (tensor.role != onnx_io::OutputRole::kGradient) continue;
    const ir::Tensor& expected = whole.at(tensor.name);
    const ir::Tensor& actual = rank.at(tensor.name);
    std::vector<float>& shares = differences.shares[tensor.name];
    shares.resize(static_cast<size_t>(expected.num_elements()), 0);
    for (int64_t i = 0; i < expected.num_elements(); ++i) {
      const double size = std::abs(expected.value_as_double(i));
      const double error = std::abs(actual.value_as_double(i) - expected.value_as_double(i));
      if (error == 0) continue;
      float& share = shares[static_cast<size_t>(i)];
      share = std::max(share, static_cast<float>(error < size ? error / size : 1));
    }
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
    tensor.is_rounding =
        differs_by_rounding(tensor, whole.parameters.at(tensor.name), rank_parameters, moved,
                            differences.shares.at(gradient));
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

void mark_sensitive(const Trajectory& whole, const Trajectory& nudged,
                    const Differences& differences, Curves& curves) {
  constexpr double kFew = 4;
  for (TensorComparison& tensor : curves.tensors) {
    if (tensor.agrees()) continue;
    double sensitivity = 0;
    bool explained = true;
    for (size_t step = 0; step < whole.steps.size(); ++step) {
      sensitivity = std::max(sensitivity, largest_difference(whole.steps[step].at(tensor.name),
                                                             nudged.steps[step].at(tensor.name)));
      const Differences::Step& at = differences.steps.at(tensor.name)[step];
      explained = explained && std::isfinite(sensitivity) &&
                  at.error <= std::max(at.allowed, kFew * sensitivity);
    }
    tensor.is_as_exact = explained;
  }
  for (TensorComparison& tensor : curves.parameters) {
    if (tensor.agrees()) continue;
    const double sensitivity =
        largest_difference(whole.parameters.at(tensor.name), nudged.parameters.at(tensor.name));
    tensor.is_as_exact = std::isfinite(sensitivity) && tensor.largest_error <= kFew * sensitivity;
  }
}

}  // namespace autosp::cli
