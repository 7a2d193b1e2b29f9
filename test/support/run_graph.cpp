#include "support/run_graph.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "reference/kernels.h"

namespace autosp::test {

using ir::DataType;
using ir::Graph;
using ir::Tensor;

Tensors run_graph(const Graph& graph, const Tensors& feeds) {
  std::vector<Tensor> values(graph.values().size());
  for (size_t v = 0; v < values.size(); ++v) {
    const ir::Value& value = graph.values()[v];
    if (value.kind == ir::ValueKind::kConstant) values[v] = value.constant;
    if (value.kind == ir::ValueKind::kInput) {
      const auto found = feeds.find(value.name);
      AUTOSP_CHECK(found != feeds.end(), "no feed for '{}'", value.name);
      AUTOSP_CHECK(found->second.type() == value.type, "'{}' is {}, fed {}", value.name,
                   to_string(value.type), to_string(found->second.type()));
      values[v] = found->second;
    }
  }
  for (const ir::Node& node : graph.nodes()) {
    std::vector<Tensor> operands;
    for (ValueId input : node.inputs) operands.push_back(input ? values[input.index()] : Tensor());
    const std::vector<Tensor> results = reference::evaluate(graph, node, operands);
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) values[node.outputs[k].index()] = results[k];
    }
  }
  Tensors outputs;
  for (const ir::Output& output : graph.outputs()) {
    outputs[output.name] = values[output.value.index()];
  }
  return outputs;
}

namespace {

bool mentions(const std::string& name, std::string_view word) {
  return name.find(word) != std::string::npos;
}

Tensor fill(const ir::Type& type, const std::function<double(int64_t)>& entry) {
  Tensor result(type);
  const size_t size = element_size(type.dtype);
  for (int64_t k = 0; k < type.num_elements(); ++k) {
    const Tensor one = Tensor::scalar(type.dtype, entry(k));
    std::ranges::copy(one.bytes(), result.mutable_bytes() + static_cast<size_t>(k) * size);
  }
  return result;
}

Tensor random_integers(const std::string& name, const ir::Type& type, int64_t limit,
                       std::mt19937& generator) {
  const int64_t row = type.rank() == 0 ? 1 : type.shape.back();
  const bool labels = mentions(name, "label") || mentions(name, "target");
  const bool mask = mentions(name, "mask") || type.dtype == DataType::kBool;
  if (mentions(name, "type")) limit = 2;
  return fill(type, [&](int64_t k) -> double {
    const auto value = static_cast<int64_t>(generator() % static_cast<uint64_t>(limit));
    if (labels && generator() % 5 == 0) return -100;
    if (mask) return k % row < row - (k / row) % 4 ? 1 : 0;
    return static_cast<double>(value);
  });
}

// Of numbers that are computed: the lowest float, a mask's, is none to measure others by.
double largest_entry(const Tensor& tensor) {
  constexpr double kMask = 1e30;
  double largest = 0;
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    const double value = std::fabs(tensor.value_as_double(k));
    if (value < kMask) largest = std::max(largest, value);
  }
  return largest;
}

// NaN when a tensor has one, but where both have it and `nan_is_equal`.
double largest_difference(const Tensor& a, const Tensor& b, bool nan_is_equal) {
  double largest = 0;
  for (int64_t k = 0; k < a.num_elements(); ++k) {
    const double x = a.value_as_double(k);
    const double y = b.value_as_double(k);
    if (x == y || (nan_is_equal && std::isnan(x) && std::isnan(y))) continue;
    const double difference = std::fabs(x - y);
    if (std::isnan(difference)) return difference;
    largest = std::max(largest, difference);
  }
  return largest;
}

void compare_all(const Tensors& got, const Tensors& want, double tolerance, bool nan_is_equal) {
  double overall = 0;
  for (const auto& [name, tensor] : want) overall = std::max(overall, largest_entry(tensor));
  for (const auto& [name, tensor] : want) {
    const auto found = got.find(name);
    if (found == got.end()) {
      ADD_FAILURE() << "output '" << name << "' is missing";
      continue;
    }
    ASSERT_EQ(to_string(found->second.type()), to_string(tensor.type())) << name;
    const double scale = std::max(largest_entry(tensor), 1e-4 * overall);
    EXPECT_LE(largest_difference(found->second, tensor, nan_is_equal), tolerance * scale) << name;
  }
  EXPECT_EQ(got.size(), want.size());
}

}  // namespace

Tensors random_feeds(const Graph& graph, const FeedOptions& options) {
  std::mt19937 generator(options.seed);
  Tensors feeds;
  for (ValueId input : graph.inputs()) {
    const ir::Value& value = graph.value(input);
    if (!is_floating(value.type.dtype)) {
      feeds[value.name] = random_integers(value.name, value.type, options.num_tokens, generator);
      continue;
    }
    std::normal_distribution<double> normal(0.0, value.type.rank() >= 2 ? 0.1 : 0.5);
    feeds[value.name] = fill(value.type, [&](int64_t) { return normal(generator); });
  }
  return feeds;
}

void expect_close(const Tensors& got, const Tensors& want, double tolerance) {
  compare_all(got, want, tolerance, false);
}

void expect_close_or_nan(const Tensors& got, const Tensors& want, double tolerance) {
  compare_all(got, want, tolerance, true);
}

size_t count_nodes(const Graph& graph, std::string_view op, std::string_view domain) {
  return static_cast<size_t>(std::ranges::count_if(
      graph.nodes(), [&](const ir::Node& node) { return node.op == op && node.domain == domain; }));
}

}  // namespace autosp::test
