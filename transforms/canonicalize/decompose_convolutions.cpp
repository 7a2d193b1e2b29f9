// Convolutions along one axis as sums over the taps of their kernels.
//
// A convolution meets its neighbours, so its operand would be gathered and the whole of it computed
// on every rank. Tap by tap it is a window of the operand times weights, and a window that reaches
// into another rank's tokens costs these tokens alone:
//
//   Conv             y[o, t] = sum over i, k of w[o, i, k] x[i, t + k d - before]
//   ConvTranspose    y[o, t] = sum over i, k of w[i, o, k] x[i, t - k d + before]
//
// with the dilation d and the padding `before`. Strides are left alone, as patches and subsampling
// have: there a sequence begins. So are kernels of more taps than kMostTaps, and convolutions of
// the model's inputs, which tell that the last axis of audio is its sequence (shard/roles.cpp).
#include <algorithm>

#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms {

using ir::Builder;
using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

constexpr int64_t kMostTaps = 64;

struct Convolution {
  bool transposed = false;
  int64_t batch = 0;
  int64_t groups = 1;
  int64_t in = 0;   // channels of a group
  int64_t out = 0;  // of a group
  int64_t taps = 0;
  int64_t extent = 0;  // of x along the axis
  int64_t result = 0;  // of y
  int64_t dilation = 1;
  int64_t before = 0;

  // Of the window of x that tap k meets; negative, or beyond the extent, where that is padding.
  int64_t begin(int64_t k) const {
    return transposed ? before - k * dilation : k * dilation - before;
  }
  bool is_depthwise() const { return in == 1 && out == 1; }
};

// Padding before the first element, as the node's auto_pad says.
int64_t padding_before(const ir::Attributes& attributes, size_t axis, const Convolution& c) {
  const std::string automatic = attributes.get_string("auto_pad", "NOTSET");
  if (automatic == "VALID") return 0;
  if (automatic == "NOTSET") {
    const std::vector<int64_t> pads = attributes.get_ints("pads");
    return pads.empty() ? 0 : pads[axis];
  }
  const int64_t all = (c.taps - 1) * c.dilation;  // the results are as many as the operands
  return automatic == "SAME_UPPER" ? all / 2 : all - all / 2;
}

// What the node computes along its only axis of more than one element; nullopt where it strides,
// has more axes, or too many taps.
std::optional<Convolution> read(const Graph& graph, const Node& node) {
  const bool transposed = node.is("ConvTranspose");
  if (!transposed && !node.is("Conv")) return std::nullopt;
  if (graph.value(node.input(0)).kind == ir::ValueKind::kInput) return std::nullopt;
  const ir::Shape& x = graph.shape(node.input(0));
  const ir::Shape& w = graph.shape(node.input(1));
  const ir::Shape& y = graph.shape(node.output(0));
  if (x.size() < 3) return std::nullopt;
  const auto is_one = [](int64_t value) { return value == 1; };
  const auto is_none = [](int64_t value) { return value == 0; };
  if (transposed && (node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" ||
                     !node.attributes.get_ints("output_shape").empty())) {
    return std::nullopt;
  }
  const std::vector<int64_t> output_padding = node.attributes.get_ints("output_padding");
  if (!std::ranges::all_of(node.attributes.get_ints("strides"), is_one) ||
      !std::ranges::all_of(output_padding, is_none)) {
    return std::nullopt;
  }
  size_t axis = x.size() - 1;
  for (size_t k = 2; k < x.size(); ++k) {
    if (x[k] != 1 || y[k] != 1) axis = k;
  }
  for (size_t k = 2; k < x.size(); ++k) {
    if (k != axis && (x[k] != 1 || y[k] != 1 || w[k] != 1)) return std::nullopt;
  }
  Convolution c{.transposed = transposed, .batch = x[0]};
  c.groups = node.attributes.get_int("group", 1);
  if (c.groups < 1) return std::nullopt;
  c.in = transposed ? w[0] / c.groups : w[1];
  c.out = transposed ? w[1] : w[0] / c.groups;
  c.taps = w[axis];
  c.extent = x[axis];
  c.result = y[axis];
  const std::vector<int64_t> dilations = node.attributes.get_ints("dilations");
  if (!dilations.empty()) c.dilation = dilations[axis - 2];
  c.before = padding_before(node.attributes, axis - 2, c);
  const int64_t filters = transposed ? c.groups * c.in : c.groups * c.out;
  if (x[1] != c.groups * c.in || w[0] != filters) return std::nullopt;
  if (c.taps > kMostTaps || c.taps < 1 || c.result < 1) return std::nullopt;
  return c;
}

// y [batch, out, result] from x [batch, in, extent] and w as the node has it; channels are those of
// all groups. Several taps of 16 bits are multiplied and added up in float32.
ValueId sum_of_taps(Builder& build, const Convolution& c, ValueId x, ValueId w) {
  // One Pad holds the windows of all taps, and a position more than they need: the weights'
  // gradient takes the same windows in the backward pass, and must not find these, or the forward
  // pass would keep as many copies of x as there are taps.
  const int64_t first = std::min(c.begin(0), c.begin(c.taps - 1));
  const int64_t last = std::max(c.begin(0), c.begin(c.taps - 1)) + c.result;
  const int64_t before = std::max<int64_t>(0, -first);
  if (c.taps > 1 || before > 0 || last > c.extent) {
    x = build.pad(x, {0, 0, before}, {0, 0, std::max<int64_t>(0, last - c.extent) + 1});
  }
  const int64_t rows = c.transposed ? c.groups * c.in : c.groups * c.out;
  const int64_t columns = c.transposed ? c.out : c.in;
  const ir::Shape grouped = {c.batch, c.groups, c.in, c.result};
  // Added up one by one: a sum of all would keep every tap's product until it is made.
  ValueId sum;
  const auto add = [&](ValueId product) {
    sum = sum ? build.binary("Add", sum, product) : product;
  };
  for (int64_t k = 0; k < c.taps; ++k) {
    const int64_t begin = c.begin(k) + before;
    ValueId window = build.slice(x, 2, begin, begin + c.result);
    ValueId weights = build.reshape(build.slice(w, 2, k, k + 1), {rows, columns});
    if (c.taps > 1) {
      window = widen(build, window);
      weights = widen(build, weights);
    }
    if (c.is_depthwise()) {
      add(build.binary("Mul", window, weights));
      continue;
    }
    if (c.groups > 1) {
      window = build.reshape(window, grouped);
      weights = build.reshape(weights, {c.groups, rows / c.groups, columns});
    }
    if (c.transposed) {
      weights = build.transpose(
          weights, c.groups > 1 ? std::vector<int64_t>{0, 2, 1} : std::vector<int64_t>{1, 0});
    }
    add(build.matmul(weights, window));
  }
  return build.reshape(sum, {c.batch, c.groups * c.out, c.result});
}

bool decompose(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  const std::optional<Convolution> c = read(graph, node);
  if (!c || !is_floating(graph.type(node.output(0)).dtype)) return false;
  Builder& build = rewriter.build();
  const ir::Type& type = graph.type(node.output(0));
  const std::string& name = graph.name_of(node.output(0));
  const ir::Shape& weights = graph.shape(node.input(1));
  const ValueId x =
      build.reshape(rewriter.mapped(node.input(0)), {c->batch, c->groups * c->in, c->extent});
  const ValueId w =
      build.reshape(rewriter.mapped(node.input(1)), {weights[0], weights[1], c->taps});
  ValueId y = sum_of_taps(build, *c, x, w);
  if (node.input(2)) {
    const ValueId bias = build.cast(rewriter.mapped(node.input(2)), build.dtype(y));
    y = build.binary("Add", y, build.reshape(bias, {c->groups * c->out, 1}));
  }
  rewriter.map(node.output(0),
               build.identity(build.reshape(build.cast(y, type.dtype), type.shape), name));
  return true;
}

}  // namespace

Graph decompose_convolutions(const Graph& graph) { return rewrite_nodes(graph, decompose); }

}  // namespace autosp::transforms
