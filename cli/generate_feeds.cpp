// Inputs out of thin air, for `validate` without --feed.
//
// Names and element types say what kind an input is. What integers may be follows from who reads
// them: an index into a table of V rows is below V.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <unordered_set>

#include "base/error.h"
#include "feeds.h"

namespace autosp::cli {

namespace {

using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Tensor;

bool contains(const std::string& name, std::string_view part) {
  std::string lower = name;
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower.find(part) != std::string::npos;
}

// What the readers of an integer input allow.
struct Limits {
  std::optional<int64_t> below;    // indices
  std::optional<int64_t> ignored;  // a label that does not count
};

// Operators that pass an index on, or choose between it and something else.
bool passes_indices_on(const Node& node, size_t operand) {
  static const std::unordered_set<std::string> kViews = {
      "Reshape", "Cast",   "Squeeze",  "Unsqueeze", "Transpose", "Slice",
      "Pad",     "Expand", "Identity", "Concat",    "Split",     "Gather"};
  if (!node.domain.empty()) return false;
  if (node.op == "Where") return operand > 0;
  if (node.op == "Clip" || node.op == "Max" || node.op == "Min") return true;
  return kViews.contains(node.op) && (operand == 0 || node.op == "Concat");
}

// Operators that hand on what is true of a label: whether it counts.
bool passes_condition_on(const Node& node) {
  static const std::unordered_set<std::string> kConditions = {
      "Not",     "And",    "Or",        "Cast",      "Identity", "Reshape",
      "Squeeze", "Expand", "Unsqueeze", "Transpose", "Slice",    "Pad"};
  return node.domain.empty() && kConditions.contains(node.op);
}

bool is_index(const Node& node, size_t operand) {
  static const std::unordered_set<std::string> kIndexed = {"Gather", "GatherElements", "GatherND",
                                                           "ScatterElements", "ScatterND"};
  return node.domain.empty() && operand == 1 && kIndexed.contains(node.op);
}

class LimitFinder {
 public:
  explicit LimitFinder(const Graph& graph) : graph_(graph), readers_(ir::consumers(graph)) {}

  Limits find(ValueId input) {
    limits_ = {};
    counts_.clear();
    seen_.clear();
    visit(input);
    for (const auto& [label, conditions] : counts_) {
      std::unordered_set<ValueId> seen;
      if (limits_.ignored || reaches_index(input, conditions, seen)) continue;
      limits_.ignored = label;
    }
    return limits_;
  }

 private:
  using Values = std::unordered_set<ValueId>;

  void visit(ValueId value) {
    if (!seen_.insert(value).second) return;
    for (NodeId reader : readers_[value.index()]) {
      const Node& node = graph_.node(reader);
      for (size_t k = 0; k < node.inputs.size(); ++k) {
        if (node.inputs[k] == value) read(node, k);
      }
    }
  }

  void read(const Node& node, size_t k) {
    if (is_index(node, k)) {
      if (node.op.ends_with("ND")) return;  // its last dimension indexes several
      const auto axis = static_cast<size_t>(node.attributes.get_int("axis", 0));
      bound(graph_.shape(node.input(0))[axis]);
    } else if (node.op == "SoftmaxCrossEntropyLoss" || node.op == "NegativeLogLikelihoodLoss") {
      if (k != 1) return;
      bound(graph_.shape(node.input(0))[1]);
      if (node.attributes.has("ignore_index")) counts_[node.attributes.get_int("ignore_index", 0)];
    } else if (node.is("Equal")) {
      const ValueId other = node.input(1 - k);
      if (graph_.is_constant(other) && graph_.constant(other).num_elements() == 1) {
        const auto label = static_cast<int64_t>(graph_.constant(other).value_as_double(0));
        if (label < 0) add_conditions(node.outputs[0], counts_[label]);
      }
    } else if (passes_indices_on(node, k)) {
      for (ValueId output : node.outputs) {
        if (output) visit(output);
      }
    }
  }

  void add_conditions(ValueId condition, Values& conditions) const {
    if (!conditions.insert(condition).second) return;
    for (NodeId reader : readers_[condition.index()]) {
      const Node& node = graph_.node(reader);
      if (passes_condition_on(node)) add_conditions(node.outputs[0], conditions);
    }
  }

  // Whether an element of the value is looked up whatever it is: PyTorch compares tokens too with a
  // number that does not count, in the gradient of their embedding.
  bool reaches_index(ValueId value, const Values& conditions, Values& seen) const {
    if (!seen.insert(value).second) return false;
    return std::ranges::any_of(readers_[value.index()], [&](NodeId reader) {
      const Node& node = graph_.node(reader);
      for (size_t k = 0; k < node.inputs.size(); ++k) {
        if (node.inputs[k] != value) continue;
        if (is_index(node, k)) return true;
        if (!passes_indices_on(node, k) || replaces_ignored(node, conditions)) continue;
        for (ValueId output : node.outputs) {
          if (output && reaches_index(output, conditions, seen)) return true;
        }
      }
      return false;
    });
  }

  // Whether what is ignored does not get past the node: a choice by whether it counts, or a floor.
  bool replaces_ignored(const Node& node, const Values& conditions) const {
    if (node.is("Where")) return conditions.contains(node.input(0));
    if (!node.is("Max") && !node.is("Clip")) return false;
    const size_t end =
        node.is("Max") ? node.inputs.size() : std::min<size_t>(node.inputs.size(), 2);
    for (size_t k = node.is("Max") ? 0 : 1; k < end; ++k) {
      const ValueId floor = node.inputs[k];
      if (!floor || !graph_.is_constant(floor)) continue;
      const Tensor& tensor = graph_.constant(floor);
      if (tensor.num_elements() == 1 && tensor.value_as_double(0) >= 0) return true;
    }
    return false;
  }

  void bound(int64_t extent) { limits_.below = std::min(limits_.below.value_or(extent), extent); }

  const Graph& graph_;
  std::vector<std::vector<NodeId>> readers_;
  Limits limits_;
  std::map<int64_t, Values> counts_;  // what is compared with -> what tells whether it counts
  Values seen_;
};

class Generator {
 public:
  Generator(const Graph& graph, uint64_t seed) : graph_(graph), finder_(graph), random_(seed) {}

  Tensor make(const onnx_io::ManifestInput& input) {
    const ValueId value = graph_.find(input.name).value_or(ValueId());
    const Limits limits = value ? finder_.find(value) : Limits();
    if (input.role == onnx_io::InputRole::kParameter) return weights(input);
    if (contains(input.name, "mask")) return mask(input.type);
    if (ir::is_floating(input.type.dtype)) {
      return fill(input.type, [&](const auto&) { return normal_(random_); });
    }
    if (input.type.dtype == DataType::kBool) return mask(input.type);
    if (contains(input.name, "position")) {
      const int64_t below = limits.below.value_or(input.type.shape.back());
      return fill(input.type, [&](const auto& at) {
        return static_cast<double>(at.empty() ? 0 : at.back() % below);
      });
    }
    std::uniform_int_distribution<int64_t> token(0, limits.below.value_or(2) - 1);
    std::uniform_int_distribution<int> die(0, 7);
    return fill(input.type, [&](const auto&) {
      const int64_t chosen = token(random_);
      const bool ignore = limits.ignored && die(random_) == 0;
      return static_cast<double>(ignore ? *limits.ignored : chosen);
    });
  }

 private:
  using Position = std::vector<int64_t>;

  static Tensor fill(const ir::Type& type, const std::function<double(const Position&)>& value) {
    Tensor doubles({DataType::kFloat64, type.shape});
    auto elements = doubles.mutable_values<double>();
    Position at(type.rank(), 0);
    for (double& element : elements) {
      element = value(at);
      for (size_t k = at.size(); k-- > 0 && ++at[k] == type.shape[k];) at[k] = 0;
    }
    return convert(doubles, type.dtype);
  }

  static Tensor convert(const Tensor& doubles, DataType dtype) {
    Tensor result({dtype, doubles.shape()});
    const auto from = doubles.values<double>();
    std::byte* to = result.mutable_bytes();
    const size_t size = ir::element_size(dtype);
    for (size_t k = 0; k < from.size(); ++k) {
      const Tensor one = Tensor::scalar(dtype, from[k]);
      std::ranges::copy(one.bytes(), to + k * size);
    }
    return result;
  }

  // Matrices keep the size of what they multiply; scales are near 1, biases near 0.
  Tensor weights(const onnx_io::ManifestInput& input) {
    const ir::Shape& shape = input.type.shape;
    const bool scale = shape.size() == 1 && !contains(input.name, "bias");
    const double spread =
        shape.size() < 2 ? 0.1 : 1 / std::sqrt(static_cast<double>(std::max(shape[0], shape[1])));
    return fill(input.type,
                [&](const auto&) { return (scale ? 1 : 0) + spread * normal_(random_); });
  }

  // Ones, with zeros at the end of every other row, as padded batches have.
  static Tensor mask(const ir::Type& type) {
    return fill(type, [&](const Position& at) {
      if (at.size() < 2) return 1.0;
      const int64_t extent = type.shape.back();
      const int64_t padding = at[0] % 2 == 1 ? extent / 4 : 0;
      return at.back() < extent - padding ? 1.0 : 0.0;
    });
  }

  const Graph& graph_;
  LimitFinder finder_;
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
};

}  // namespace

executor::Arrays generate_feeds(const Graph& graph, const onnx_io::Manifest& manifest,
                                uint64_t seed) {
  Generator generator(graph, seed);
  executor::Arrays feeds;
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    feeds[input.name] = generator.make(input);
  }
  if (manifest.random && !manifest.random->step_input.empty()) set_step(manifest, 0, feeds);
  return feeds;
}

}  // namespace autosp::cli
