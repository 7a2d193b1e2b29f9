#include "diagnose.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"

namespace autosp::cli {

namespace {

using executor::Arrays;
using ir::Tensor;
using onnx_io::ManifestInput;
using onnx_io::ManifestSlice;
using onnx_io::OutputRole;

constexpr double kSame = 2e-5;  // relative, of losses that are to be the same number
constexpr int64_t kIgnored = -100;

bool same(double a, double b) {
  return std::abs(a - b) <= kSame * std::max(std::abs(a), std::abs(b));
}

bool named(const ManifestInput& input, std::initializer_list<const char*> words) {
  std::string lower = input.name;
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return input.role == onnx_io::InputRole::kData &&
         std::ranges::any_of(
             words, [&](const char* word) { return lower.find(word) != std::string::npos; });
}

// A copy whose elements can be changed.
Tensor own(const Tensor& tensor) { return {tensor.type(), tensor.bytes()}; }

void set_element(Tensor& tensor, int64_t at, int64_t value) {
  if (tensor.dtype() == ir::DataType::kInt32) {
    tensor.mutable_values<int32_t>()[static_cast<size_t>(at)] = static_cast<int32_t>(value);
  } else {
    tensor.mutable_values<int64_t>()[static_cast<size_t>(at)] = value;
  }
}

// The index along every axis of an element.
std::vector<int64_t> index_of(int64_t element, const ir::Shape& shape) {
  std::vector<int64_t> index(shape.size());
  for (size_t axis = shape.size(); axis-- > 0;) {
    index[axis] = element % shape[axis];
    element /= shape[axis];
  }
  return index;
}

bool contains(const ManifestSlice& slice, const std::vector<int64_t>& index) {
  for (size_t axis = 0; axis < index.size(); ++axis) {
    if (index[axis] < slice.begin[axis]) return false;
    if (index[axis] >= slice.begin[axis] + slice.extent[axis]) return false;
  }
  return true;
}

class Diagnosis {
 public:
  explicit Diagnosis(const Difference& difference) : d_(difference) {
    for (const onnx_io::ManifestOutput& output : d_.manifest.outputs) {
      if (output.role == OutputRole::kLoss) loss_ = output.name;
    }
    for (const Arrays& rank : d_.ranks) rank_losses_.push_back(loss_of(rank));
  }

  std::vector<std::string> run() {
    const bool loss_differs = std::ranges::any_of(
        rank_losses_, [&](double loss) { return !same(loss, loss_of(d_.whole)); });
    if (loss_differs) {
      local_mean();
      late_shift();
      missing_mask();
    } else {
      counted_twice();
      common_factor();
    }
    local_positions();
    return std::move(causes_);
  }

 private:
  double loss_of(const Arrays& outputs) const {
    const auto found = outputs.find(loss_);
    return found == outputs.end() ? 0 : found->second.value_as_double(0);
  }

  double loss_with(const std::string& input, Tensor value) const {
    Arrays feeds = d_.feeds;
    feeds[input] = std::move(value);
    return loss_of(
        executor::run_in_threads({d_.whole_graph}, {feeds}, d_.options).ranks[0].outputs);
  }

  // Of a type that holds kIgnored.
  const ManifestInput* labels() const {
    for (const ManifestInput& input : d_.manifest.inputs) {
      const ir::DataType dtype = input.type.dtype;
      const bool is_wide = dtype == ir::DataType::kInt32 || dtype == ir::DataType::kInt64;
      if (is_wide && named(input, {"label", "target"})) return &input;
    }
    return nullptr;
  }

  // The rank that a label counts on: the first of those that hold it. Slices overlap where the
  // model shifts labels, and the first label of a slice then belongs to the rank before.
  int64_t rank_of(const ManifestInput& input, const std::vector<int64_t>& index) const {
    for (size_t k = 0; k < input.slices.size(); ++k) {
      if (contains(input.slices[k], index)) return static_cast<int64_t>(k);
    }
    return 0;
  }

  bool all_losses_are(double value) const {
    return std::ranges::all_of(rank_losses_, [&](double loss) { return same(loss, value); });
  }

  void local_mean() {
    const ManifestInput* input = labels();
    if (input == nullptr || input->slices.empty()) return;
    std::vector<double> local;
    for (size_t k = 0; k < rank_losses_.size(); ++k) {
      Tensor value = own(d_.feeds.at(input->name));
      for (int64_t i = 0; i < value.num_elements(); ++i) {
        const int64_t rank = rank_of(*input, index_of(i, value.shape()));
        if (rank != static_cast<int64_t>(k)) set_element(value, i, kIgnored);
      }
      local.push_back(loss_with(input->name, std::move(value)));
    }
    bool every = true;
    double mean = 0;
    for (size_t k = 0; k < local.size(); ++k) {
      every = every && same(local[k], rank_losses_[k]);
      mean += local[k] / static_cast<double>(local.size());
    }
    if (every) {
      causes_.emplace_back(
          "local mean: every rank's loss is the mean over its own tokens; numerator and count are "
          "to be summed over all ranks before one is divided by the other");
    } else if (all_losses_are(mean)) {
      causes_.emplace_back(
          "local mean: the loss is the mean of the ranks' means, which have different numbers of "
          "valid tokens");
    }
  }

  void late_shift() {
    const ManifestInput* input = labels();
    if (input == nullptr) return;
    const Tensor& given = d_.feeds.at(input->name);
    for (const ManifestInput& tokens : d_.manifest.inputs) {
      if (&tokens == input || tokens.slices.empty() || tokens.type.shape != given.shape()) continue;
      for (size_t axis = 0; axis < given.shape().size(); ++axis) {
        std::set<int64_t> begins;
        for (const ManifestSlice& slice : tokens.slices) begins.insert(slice.begin[axis]);
        begins.erase(0);
        if (begins.empty()) continue;
        Tensor value = own(given);
        for (int64_t i = 0; i < value.num_elements(); ++i) {
          if (begins.contains(index_of(i, value.shape())[axis])) set_element(value, i, kIgnored);
        }
        if (!all_losses_are(loss_with(input->name, std::move(value)))) continue;
        causes_.push_back(
            fmt::format("labels shifted after sharding: the loss is that without the labels at the "
                        "ranks' first "
                        "positions, of which there are {} along axis {}: the last token of a rank "
                        "has no target",
                        begins.size(), axis));
        return;
      }
    }
  }

  void missing_mask() {
    for (const ManifestInput& input : d_.manifest.inputs) {
      if (!named(input, {"mask"})) continue;
      const Tensor ones = Tensor::filled(input.type, 1);
      if (!all_losses_are(loss_with(input.name, ones))) continue;
      causes_.push_back(fmt::format(
          "missing mask: the loss is that of '{}' without any zero: the ranks do not apply it",
          input.name));
    }
  }

  std::vector<const TensorComparison*> differing_gradients() const {
    std::vector<const TensorComparison*> result;
    for (const TensorComparison& tensor : d_.tensors) {
      if (tensor.role == OutputRole::kGradient && !tensor.equal()) result.push_back(&tensor);
    }
    return result;
  }

  const std::string& parameter_of(const std::string& gradient) const {
    for (const onnx_io::ManifestOutput& output : d_.manifest.outputs) {
      if (output.name == gradient) return output.parameter;
    }
    internal_error(__FILE__, __LINE__, gradient);
  }

  void counted_twice() {
    const auto differing = differing_gradients();
    if (differing.size() != 1) return;
    const std::string& parameter = parameter_of(differing.front()->name);
    const auto value = d_.whole_graph->find(parameter);
    if (!value) return;
    const size_t uses = ir::consumers(*d_.whole_graph)[value->index()].size();
    if (uses < 2) return;
    causes_.push_back(fmt::format(
        "counted twice: of all gradients only that of '{}' differs, which {} operators use (tied "
        "weights): what one use contributes is summed over the ranks more than once, or not at all",
        parameter, uses));
  }

  // Sum of a * b over the elements.
  static double product(const Tensor& a, const Tensor& b) {
    double sum = 0;
    for (int64_t i = 0; i < a.num_elements(); ++i)
      sum += a.value_as_double(i) * b.value_as_double(i);
    return sum;
  }

  void common_factor() {
    std::optional<double> factor;
    for (const TensorComparison& tensor : d_.tensors) {
      if (tensor.role != OutputRole::kGradient || tensor.scale == 0) continue;
      const Tensor& whole = d_.whole.at(tensor.name);
      const double square = product(whole, whole);
      if (square == 0) continue;
      const double ratio = product(d_.ranks[0].at(tensor.name), whole) / square;
      if (!std::isfinite(ratio)) return;
      constexpr double kLoose = 1e-2;  // of the factor, and of what it is off by
      if (factor &&
          std::abs(ratio - *factor) > kLoose * std::min(std::abs(*factor), std::abs(*factor - 1))) {
        return;
      }
      if (!factor) factor = ratio;
    }
    if (!factor || same(*factor, 1)) return;
    causes_.push_back(
        fmt::format("common factor: every gradient is {:.4g} times what it is to be, over {} "
                    "ranks: summed where "
                    "it is to be averaged, or the other way round",
                    *factor, d_.ranks.size()));
  }

  // Whether any element of row `row` is not zero.
  static bool has_entries(const Tensor& tensor, int64_t row) {
    const int64_t width = tensor.num_elements() / tensor.shape()[0];
    for (int64_t i = row * width; i < (row + 1) * width; ++i) {
      if (tensor.value_as_double(i) != 0) return true;
    }
    return false;
  }

  // A table of positions of which only the first rows are used, as many as a rank has tokens.
  void local_positions() {
    for (const TensorComparison* tensor : differing_gradients()) {
      const Tensor& whole = d_.whole.at(tensor->name);
      const Tensor& sharded = d_.ranks[0].at(tensor->name);
      if (whole.shape().size() != 2) continue;
      const auto last_row = [](const Tensor& gradient) {
        int64_t row = gradient.shape()[0];
        while (row > 0 && !has_entries(gradient, row - 1)) --row;
        return row;
      };
      const int64_t wanted = last_row(whole);
      const int64_t used = last_row(sharded);
      if (used >= wanted || !is_token_count(used)) continue;
      causes_.push_back(fmt::format(
          "local positions: rows {} to {} of '{}' have no gradient, as if positions began at 0 on "
          "every rank",
          used, wanted - 1, parameter_of(tensor->name)));
    }
  }

  // Whether some rank holds so many positions of an input.
  bool is_token_count(int64_t count) const {
    for (const ManifestInput& input : d_.manifest.inputs) {
      for (const ManifestSlice& slice : input.slices) {
        for (int64_t extent : slice.extent) {
          if (extent == count) return true;
        }
      }
    }
    return false;
  }

  const Difference& d_;
  std::string loss_;
  std::vector<double> rank_losses_;
  std::vector<std::string> causes_;
};

}  // namespace

std::vector<std::string> likely_causes(const Difference& difference) {
  return Diagnosis(difference).run();
}

}  // namespace autosp::cli
