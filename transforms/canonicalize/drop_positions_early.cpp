// Positions that the loss does not look at are dropped before the head's product, not after it.
//
// A causal model predicts the next token: the last position has none, and exporters write
//
//   logits[:, :-1]  =  Slice(x W)        d logits  =  Pad(g)
//
// Whole logits on both ends keep the head from running in tiles (tile/tile.h), and the product
// computes rows that nobody reads. Rows of a product are each on their own, so
//
//   Slice(x W) = Slice(x) W        Pad(g) W^T = Pad(g W^T)        x^T Pad(g) = Slice(x)^T g
//
// and what lies between (views, elementwise operators, the bias) commutes as well. Slices move up
// to the product's operand, pads move down to its gradient. If something else reads whole logits,
// a product would be computed twice: the graph is left as it is.
#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_set>

#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {

using ir::Builder;
using ir::Graph;
using ir::Node;
using ir::Rewriter;
using ir::Shape;

namespace {

// Positions [begin, end) of a value seen as `grid`: its elements in their order, the last extent
// being the width of a row.
struct Window {
  Shape grid;
  size_t axis = 0;  // not the last
  int64_t begin = 0;
  int64_t end = 0;

  int64_t width() const { return grid.back(); }
  Window of_width(int64_t width) const {
    Window result = *this;
    result.grid.back() = width;
    return result;
  }
  Shape kept() const {
    Shape shape = grid;
    shape[axis] = end - begin;
    return shape;
  }
  friend auto operator<=>(const Window&, const Window&) = default;
};

std::optional<size_t> only_axis_that_differs(const Shape& a, const Shape& b) {
  std::optional<size_t> found;
  for (size_t k = 0; k < a.size(); ++k) {
    if (a[k] == b[k]) continue;
    if (found) return std::nullopt;
    found = k;
  }
  return found;
}

Shape flat(const Shape& grid) {
  int64_t rows = 1;
  for (size_t k = 0; k + 1 < grid.size(); ++k) rows *= grid[k];
  return {rows, grid.back()};
}

bool is_one_of(const Node& node, const std::unordered_set<std::string_view>& ops) {
  return node.domain.empty() && ops.contains(node.op);
}
bool is_reshape(const Node& node) { return node.is("Reshape") || node.is("Identity"); }
bool is_unary(const Node& node) {
  return is_one_of(node, {"Neg", "Cast", "Tanh", "Exp", "Abs", "Sqrt", "Reciprocal", "Sigmoid"});
}
bool is_binary(const Node& node) { return is_one_of(node, {"Add", "Sub", "Mul", "Div"}); }
bool is_swap(const Node& node) {
  return node.is("Transpose") && node.attributes.get_ints("perm") == std::vector<int64_t>{1, 0};
}

bool swaps_last_two(const Node& node) {
  if (!node.is("Transpose")) return false;
  std::vector<int64_t> order = node.attributes.get_ints("perm");
  if (order.size() < 2) return false;
  std::swap(order[order.size() - 1], order[order.size() - 2]);
  return std::ranges::is_sorted(order);
}

Shape without_trailing_units(Shape shape) {
  while (!shape.empty() && shape.back() == 1) shape.pop_back();
  return shape;
}

// Rows times a matrix: MatMul, or Gemm that scales nothing.
struct Product {
  ValueId left;
  ValueId right;
  ValueId bias;
  bool left_swapped = false;
  bool right_swapped = false;
};

std::optional<Product> product_of(const Node& node) {
  if (node.is("MatMul")) return Product{node.input(0), node.input(1), ValueId()};
  if (!node.is("Gemm") || node.attributes.get_float("alpha", 1) != 1) return std::nullopt;
  const float beta = node.attributes.get_float("beta", 1);
  if (node.input(2) && beta != 0 && beta != 1) return std::nullopt;
  return Product{node.input(0), node.input(1), beta == 0 ? ValueId() : node.input(2),
                 node.attributes.get_int("transA", 0) != 0,
                 node.attributes.get_int("transB", 0) != 0};
}

class PositionDropper {
 public:
  explicit PositionDropper(const Graph& graph)
      : graph_(graph), rewriter_(graph), build_(rewriter_.build()), readers_(consumers(graph)) {}

  Graph run() && {
    for (const Node& node : graph_.nodes()) {
      if (raise_slice(node) || lower_pad(node)) continue;
      for (ValueId input : node.inputs) settle(input);
      rewriter_.copy(node);
    }
    for (const ir::Output& output : graph_.outputs()) settle(output.value);
    return std::move(rewriter_).finish();
  }

 private:
  const Shape& shape(ValueId value) const { return graph_.shape(value); }
  const Node* producer(ValueId value) const { return graph_.producer(value); }

  // Whether an operand of an elementwise operator is the same at every position.
  bool is_row(ValueId value, int64_t width) const {
    const int64_t count = graph_.type(value).num_elements();
    return count == 1 || (count == width && shape(value).back() == width);
  }

  // --- Slices, upwards.

  bool raise_slice(const Node& node) {
    if (!node.is("Slice")) return false;
    const ValueId whole = node.input(0);
    const auto axis = only_axis_that_differs(shape(whole), shape(node.output(0)));
    const auto starts = graph_.constant_ints(node.input(1));
    if (!axis || *axis + 1 == shape(whole).size() || !starts || starts->size() != 1) return false;
    if (node.input(4) || !is_widened(whole, shape(whole).back())) return false;
    const int64_t extent = shape(node.output(0))[*axis];
    const int64_t start = (*starts)[0];
    const int64_t begin = std::clamp<int64_t>(start < 0 ? start + shape(whole)[*axis] : start, 0,
                                              shape(whole)[*axis] - extent);
    rewriter_.map(node.output(0), sliced(whole, {shape(whole), *axis, begin, begin + extent}));
    return true;
  }

  // Whether the value is made, row by row, from a product that widens rows.
  bool is_widened(ValueId value, int64_t width) const {
    const Node* node = producer(value);
    if (node == nullptr || shape(value).empty() || shape(value).back() != width) return false;
    if (const auto weight = weight_of(*node)) return weight->second > weight->first;
    if (is_reshape(*node) || is_unary(*node)) return is_widened(node->input(0), width);
    return is_binary(*node) && std::ranges::any_of(node->inputs, [&](ValueId input) {
             return !is_row(input, width) && is_widened(input, width);
           });
  }

  // Rows and columns of the matrix that a product multiplies rows by.
  std::optional<std::pair<int64_t, int64_t>> weight_of(const Node& node) const {
    const auto product = product_of(node);
    if (!product || product->left_swapped || shape(product->right).size() != 2) return std::nullopt;
    const Shape& weight = shape(product->right);
    if (product->bias && !is_row(product->bias, shape(node.output(0)).back())) return std::nullopt;
    return product->right_swapped ? std::pair(weight[1], weight[0])
                                  : std::pair(weight[0], weight[1]);
  }

  // The window of a value of the old graph, in the shape that it keeps.
  ValueId sliced(ValueId value, const Window& window) {
    const auto [known, is_new] = sliced_.try_emplace({value, window});
    if (!is_new) return known->second;
    ValueId result = sliced_by_rows(value, window);
    if (!result) {
      settle(value);
      result = build_.slice(build_.reshape(rewriter_.mapped(value), window.grid),
                            static_cast<int64_t>(window.axis), window.begin, window.end);
    }
    sliced_[{value, window}] = result;
    return result;
  }

  // Invalid where the value is not made row by row.
  ValueId sliced_by_rows(ValueId value, const Window& window) {
    const Node* node = producer(value);
    const int64_t width = window.width();
    if (node == nullptr || shape(value).empty() || shape(value).back() != width) return {};
    const std::string& name = graph_.name_of(value);
    if (const auto weight = weight_of(*node)) {
      const Product product = *product_of(*node);
      const ValueId rows = sliced(product.left, window.of_width(weight->first));
      const ValueId result =
          build_.matmul(rows, matrix(product.right, product.right_swapped), name);
      return product.bias ? build_.binary("Add", result, row(product.bias, width)) : result;
    }
    if (is_reshape(*node)) return sliced(node->input(0), window);
    if (is_unary(*node)) {
      return elementwise(*node, {sliced(node->input(0), window)}, name);
    }
    if (!is_binary(*node)) return {};
    for (ValueId input : node->inputs) {
      if (!is_row(input, width) && shape(input) != shape(value)) return {};
    }
    return elementwise(*node, {operand(node->input(0), window), operand(node->input(1), window)},
                       name);
  }

  // --- Pads, downwards.

  // A value that is zero outside a window: [begin, end) of it is `core`.
  struct Padded {
    ValueId core;  // of the new graph, in the shape that the window keeps
    Window window;
    bool swapped = false;  // [width, rows] instead of the grid
  };

  bool lower_pad(const Node& node) {
    if (node.is("Pad")) return begin_pad(node);
    const bool is_padded = std::ranges::any_of(
        node.inputs, [&](ValueId input) { return input && padded_.contains(input); });
    if (!is_padded || node.outputs.size() != 1) return false;
    if (product_of(node)) return lower_through_product(node, *product_of(node));
    if (node.is("ReduceSum")) return lower_through_sum(node);
    return lower_through_rows(node);
  }

  bool begin_pad(const Node& node) {
    const ValueId whole = node.output(0);
    const auto pads = graph_.constant_ints(node.input(1));
    const auto axis = only_axis_that_differs(shape(node.input(0)), shape(whole));
    const bool is_plain = !node.input(2) && !node.input(3) &&
                          node.attributes.get_string("mode", "constant") == "constant";
    const Shape grid = without_trailing_units(shape(whole));
    if (!pads || !axis || !is_plain || *axis + 1 >= grid.size()) return false;
    const size_t rank = shape(whole).size();
    if (pads->size() != 2 * rank || (*pads)[*axis] < 0 || (*pads)[*axis + rank] < 0) return false;
    if (!meets_narrowing(whole)) return false;
    settle(node.input(0));
    const int64_t begin = (*pads)[*axis];
    const Window window{grid, *axis, begin, begin + shape(node.input(0))[*axis]};
    return pad_later(whole,
                     {build_.reshape(rewriter_.mapped(node.input(0)), window.kept()), window});
  }

  // Whether a product that narrows rows reads the value, or views and elementwise functions of it.
  bool meets_narrowing(ValueId value) const {
    return std::ranges::any_of(readers_[value.index()], [&](NodeId id) {
      const Node& reader = graph_.node(id);
      if (const auto weight = weight_of(reader)) {
        if (product_of(reader)->left == value && weight->second < weight->first) return true;
      }
      const bool passes = is_reshape(reader) || is_unary(reader) ||
                          (is_binary(reader) && shape(reader.output(0)) == shape(value));
      return passes && meets_narrowing(reader.output(0));
    });
  }

  const Padded* find(ValueId value) const {
    const auto found = padded_.find(value);
    return found == padded_.end() ? nullptr : &found->second;
  }

  // Views and elementwise operators of which zeros stay zeros.
  bool lower_through_rows(const Node& node) {
    const Padded* first = find(node.input(0));
    const ValueId result = node.output(0);
    const std::string& name = graph_.name_of(result);
    if (first != nullptr && is_reshape(node)) {
      if (first->swapped || shape(result).empty() ||
          shape(result).back() != first->window.width()) {
        return false;
      }
      return pad_later(result, *first);
    }
    if (first != nullptr && is_swap(node)) {
      Padded swapped = *first;
      swapped.swapped = !swapped.swapped;
      return pad_later(result, swapped);
    }
    if (first != nullptr && (node.is("Neg") || node.is("Cast"))) {
      return pad_later(result,
                       {elementwise(node, {first->core}, name), first->window, first->swapped});
    }
    if (!is_binary(node)) return false;
    const Padded* second = find(node.input(1));
    const Padded& padded = first != nullptr ? *first : *second;
    const Window& window = padded.window;
    const bool product = node.is("Mul") || (node.is("Div") && second == nullptr);
    const bool both = first != nullptr && second != nullptr && first->window == second->window;
    if (padded.swapped || (second != nullptr && second->swapped) || !(product || both))
      return false;
    if (node.is("Div") && second != nullptr) return false;
    for (ValueId input : node.inputs) {
      if (!is_row(input, window.width()) && shape(input) != shape(result)) return false;
      if (find(input) == nullptr && !product) return false;
    }
    const auto operand_of = [&](ValueId input) {
      const Padded* found = find(input);
      return found != nullptr && found->window == window ? found->core : operand(input, window);
    };
    return pad_later(
        result,
        {elementwise(node, {operand_of(node.input(0)), operand_of(node.input(1))}, name), window});
  }

  bool lower_through_product(const Node& node, const Product& product) {
    if (product.bias) return false;
    const Padded* left = find(product.left);
    const Padded* right = find(product.right);
    if ((left != nullptr) == (right != nullptr)) return false;
    return left != nullptr ? lower_through_left(node, product, *left)
                           : lower_through_right(node, product, *right);
  }

  bool lower_through_left(const Node& node, const Product& product, const Padded& left) {
    const ValueId result = node.output(0);
    const std::string& name = graph_.name_of(result);
    if (shape(product.right).size() != 2) return false;
    if (left.swapped == product.left_swapped) {  // rows times a matrix
      const int64_t width = shape(result).back();
      if (width >= left.window.width()) return false;
      const ValueId rows =
          build_.matmul(left.core, matrix(product.right, product.right_swapped), name);
      rewriter_.map(result, pad_now({rows, left.window.of_width(width)}, shape(result)));
      return true;
    }
    // Sums over rows: of the gradient and of what the weight was multiplied by.
    if (product.right_swapped) return false;
    const ValueId other = sliced_flat(product.right, left.window);
    rewriter_.map(result, build_.matmul(build_.transpose(rows_of(left), {1, 0}), other, name));
    return true;
  }

  bool lower_through_right(const Node& node, const Product& product, const Padded& right) {
    if (right.swapped != product.right_swapped) return false;  // no sum over rows
    const size_t rank = shape(product.right).size();
    if (rank > 2) return lower_through_batch(node, product, right);
    ValueId rows = product.left;
    if (!product.left_swapped) {
      const Node* swap = producer(rows);
      if (swap == nullptr || !is_swap(*swap)) return false;
      rows = swap->input(0);
    }
    const ValueId other = build_.transpose(sliced_flat(rows, right.window), {1, 0});
    rewriter_.map(node.output(0),
                  build_.matmul(other, rows_of(right), graph_.name_of(node.output(0))));
    return true;
  }

  // A sum over the positions of each sample: x^T g of [samples, positions, width] each.
  bool lower_through_batch(const Node& node, const Product& product, const Padded& right) {
    const Node* swap = producer(product.left);
    const Window& window = right.window;
    const size_t rank = window.grid.size();
    if (swap == nullptr || !swaps_last_two(*swap) || window.axis + 2 != rank) return false;
    const Window own = window.of_width(shape(swap->input(0)).back());
    if (shape(swap->input(0)) != own.grid) return false;
    std::vector<int64_t> order(rank);
    std::iota(order.begin(), order.end(), 0);
    std::swap(order[rank - 1], order[rank - 2]);
    const ValueId sum = build_.matmul(build_.transpose(sliced(swap->input(0), own), order),
                                      right.core, graph_.name_of(node.output(0)));
    rewriter_.map(node.output(0), build_.reshape(sum, shape(node.output(0))));
    return true;
  }

  // A sum over all positions, of a bias's gradient.
  bool lower_through_sum(const Node& node) {
    const Padded* padded = find(node.input(0));
    const auto axes = graph_.constant_ints(node.input(1));
    if (padded == nullptr || padded->swapped || !axes) return false;
    if (shape(node.input(0)).back() != padded->window.width()) return false;  // trailing units
    const size_t rank = shape(node.input(0)).size();
    std::vector<bool> summed(rank, false);
    for (int64_t axis : *axes) summed[ir::normalize_axis(axis, rank)] = true;
    if (summed.back() || std::count(summed.begin(), summed.end(), false) != 1) return false;
    const ValueId sum = build_.reduce_sum(rows_of(*padded), {0}, false);
    rewriter_.map(node.output(0),
                  build_.reshape(sum, shape(node.output(0)), graph_.name_of(node.output(0))));
    return true;
  }

  bool pad_later(ValueId value, const Padded& padded) {
    padded_[value] = padded;
    return true;
  }

  ValueId pad_now(const Padded& padded, const Shape& to) {
    const Window& window = padded.window;
    std::vector<int64_t> before(window.grid.size(), 0);
    std::vector<int64_t> after(window.grid.size(), 0);
    before[window.axis] = window.begin;
    after[window.axis] = window.grid[window.axis] - window.end;
    ValueId whole = build_.pad(padded.core, before, after);
    if (padded.swapped) whole = build_.transpose(build_.reshape(whole, flat(window.grid)), {1, 0});
    return build_.reshape(whole, to);
  }

  // A value that somebody needs whole, if it is to be padded still.
  void settle(ValueId value) {
    if (!value) return;
    const auto found = padded_.find(value);
    if (found == padded_.end()) return;
    rewriter_.map(value, pad_now(found->second, shape(value)));
    padded_.erase(found);
  }

  // --- What both build.

  ValueId matrix(ValueId value, bool swapped) {
    settle(value);
    const ValueId mapped = rewriter_.mapped(value);
    return swapped ? build_.transpose(mapped, {1, 0}) : mapped;
  }
  // An operand that is the same at every position, to be broadcast from the last axis.
  ValueId row(ValueId value, int64_t width) {
    settle(value);
    const bool one = graph_.type(value).num_elements() == 1;
    return build_.reshape(rewriter_.mapped(value), one ? Shape{1} : Shape{width});
  }
  ValueId operand(ValueId value, const Window& window) {
    return is_row(value, window.width()) ? row(value, window.width()) : sliced(value, window);
  }
  ValueId rows_of(const Padded& padded) {
    return build_.reshape(padded.core, flat(padded.window.kept()));
  }
  // [rows, width] of a 2-D value whose rows are those of the window.
  ValueId sliced_flat(ValueId value, const Window& window) {
    const Window own = window.of_width(shape(value).back());
    return build_.reshape(sliced(value, own), flat(own.kept()));
  }
  ValueId elementwise(const Node& node, std::vector<ValueId> operands, const std::string& name) {
    const ir::DataType type = graph_.type(node.output(0)).dtype;
    const Shape result = operands.size() == 1
                             ? build_.shape(operands[0])
                             : ir::broadcast(build_.shape(operands[0]), build_.shape(operands[1]));
    return build_.node(node.op, std::move(operands), ir::Type{type, result}, node.attributes, "",
                       name);
  }

  const Graph& graph_;
  Rewriter rewriter_;
  Builder& build_;
  std::vector<std::vector<NodeId>> readers_;
  std::map<std::pair<ValueId, Window>, ValueId> sliced_;
  std::map<ValueId, Padded> padded_;  // not emitted yet
};

int64_t count_products(const Graph& graph) {
  return std::ranges::count_if(graph.nodes(),
                               [](const Node& node) { return product_of(node).has_value(); });
}

}  // namespace

Graph drop_positions_early(const Graph& graph) {
  Graph dropped = PositionDropper(graph).run();
  return count_products(dropped) > count_products(graph) ? graph : dropped;
}

}  // namespace autosp::transforms
