// Sums of products as matrix products.
//
// Linear attention is often written out: ReduceSum(Mul(x[l, 1, n], y[1, s, n]), n) has a product of
// every l with every s and n, which is larger than both factors and the sum together. State space
// models (Mamba 2) say all of their contractions so, and their gradients come out as such sums as
// well. By where a dimension of the product is found,
//
//                      in the sum      summed
//   in both factors    batch           inner
//   in x alone         row             summed in x at once
//   in y alone         column          summed in y at once
//
// and what has rows, columns and an inner dimension is MatMul(x, y). Other sums stay: dot products
// of rows (norms) and of one column (weighted means) gain nothing, and a product that something
// else reads exists anyway. In float16 a factor is not summed at once: its sum may overflow where
// that of the products does not.
#include <algorithm>
#include <numeric>

#include "ir/count_readers.h"
#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {

using ir::Builder;
using ir::Graph;
using ir::Node;
using ir::Rewriter;
using ir::Shape;

namespace {

using Axes = std::vector<int64_t>;

// The dimensions of a product of two factors that is summed; those of extent 1 are nowhere.
struct Dimensions {
  Axes batch, rows, columns, inner;
  Axes summed_in_x, summed_in_y;
};

// Extents of `shape` against those of a value of this rank that it is broadcast to.
Shape aligned(const Shape& shape, size_t rank) {
  Shape result(rank - shape.size(), 1);
  result.insert(result.end(), shape.begin(), shape.end());
  return result;
}

// nullopt where a dimension is in neither factor.
std::optional<Dimensions> sort_dimensions(const Shape& product, const Shape& x, const Shape& y,
                                          const Axes& summed) {
  Dimensions found;
  for (size_t k = 0; k < product.size(); ++k) {
    const auto axis = static_cast<int64_t>(k);
    if (product[k] == 1) continue;
    const bool is_summed = std::ranges::find(summed, axis) != summed.end();
    if (x[k] == 1 && y[k] == 1) return std::nullopt;
    if (x[k] != 1 && y[k] != 1) {
      (is_summed ? found.inner : found.batch).push_back(axis);
    } else if (x[k] != 1) {
      (is_summed ? found.summed_in_x : found.rows).push_back(axis);
    } else {
      (is_summed ? found.summed_in_y : found.columns).push_back(axis);
    }
  }
  return found;
}

int64_t extent(const Shape& shape, const Axes& axes) {
  return std::accumulate(axes.begin(), axes.end(), int64_t{1}, [&](int64_t product, int64_t axis) {
    return product * shape[static_cast<size_t>(axis)];
  });
}

class SumRaiser {
 public:
  explicit SumRaiser(Rewriter& rewriter)
      : rewriter_(rewriter), graph_(rewriter.from()), readers_(ir::count_readers(graph_)) {}

  bool rewrite(const Node& sum) {
    if (!sum.is("ReduceSum") || !sum.input(1)) return false;
    const Node* product = graph_.producer(sum.input(0));
    const auto given = graph_.constant_ints(sum.input(1));
    if (product == nullptr || !product->is("Mul") || !given || given->empty()) return false;
    const ir::Type& type = graph_.type(product->output(0));
    if (!is_floating(type.dtype) || readers_[product->output(0).index()] != 1) return false;
    const size_t rank = type.shape.size();
    Axes summed;
    for (int64_t axis : *given)
      summed.push_back(static_cast<int64_t>(ir::normalize_axis(axis, rank)));
    const ValueId x = before_expansion(product->input(0));
    const ValueId y = before_expansion(product->input(1));
    const Shape x_shape = aligned(graph_.shape(x), rank);
    const Shape y_shape = aligned(graph_.shape(y), rank);
    const auto dimensions = sort_dimensions(type.shape, x_shape, y_shape, summed);
    if (!dimensions || dimensions->rows.empty() || dimensions->columns.empty() ||
        dimensions->inner.empty()) {
      return false;
    }
    const bool sums_a_factor = !dimensions->summed_in_x.empty() || !dimensions->summed_in_y.empty();
    if (sums_a_factor && type.dtype == ir::DataType::kFloat16) return false;
    Builder& build = rewriter_.build();
    const ValueId left = build.reshape(rewriter_.mapped(x), x_shape);
    const ValueId right = build.reshape(rewriter_.mapped(y), y_shape);
    rewriter_.map(sum.output(0), multiplied(left, right, *dimensions, graph_.shape(sum.output(0)),
                                            graph_.name_of(sum.output(0))));
    return true;
  }

 private:
  // A factor is broadcast by the product itself.
  ValueId before_expansion(ValueId value) const {
    const Node* node = graph_.producer(value);
    return node != nullptr && node->is("Expand") ? node->input(0) : value;
  }

  // x and y have the rank of their product, which is summed to `result`.
  ValueId multiplied(ValueId x, ValueId y, const Dimensions& d, const Shape& result,
                     const std::string& name) {
    Builder& build = rewriter_.build();
    if (!d.summed_in_x.empty()) x = build.reduce_sum(x, d.summed_in_x, true);
    if (!d.summed_in_y.empty()) y = build.reduce_sum(y, d.summed_in_y, true);
    const Shape& x_shape = build.shape(x);
    const Shape& y_shape = build.shape(y);
    Shape extents;  // of the matrix product, its rows and columns apart
    for (int64_t axis : d.batch) extents.push_back(x_shape[static_cast<size_t>(axis)]);
    for (int64_t axis : d.rows) extents.push_back(x_shape[static_cast<size_t>(axis)]);
    for (int64_t axis : d.columns) extents.push_back(y_shape[static_cast<size_t>(axis)]);
    const ValueId matrices =
        build.matmul(matrix(x, d.batch, d.rows, d.inner), matrix(y, d.batch, d.inner, d.columns));
    Axes order;  // of the axes of the sum, what `extents` are in the order of
    for (const Axes* axes : {&d.batch, &d.rows, &d.columns})
      order.insert(order.end(), axes->begin(), axes->end());
    Axes permutation(order.size());
    std::iota(permutation.begin(), permutation.end(), int64_t{0});
    std::ranges::sort(permutation, {}, [&](int64_t k) { return order[static_cast<size_t>(k)]; });
    return build.reshape(build.transpose(build.reshape(matrices, extents), permutation), result,
                         name);
  }

  // [batch ..., rows, columns] of a value, with rows and columns flattened.
  ValueId matrix(ValueId value, const Axes& batch, const Axes& rows, const Axes& columns) {
    Builder& build = rewriter_.build();
    const Shape shape = build.shape(value);
    Axes order;
    Shape flat;
    for (int64_t axis : batch) flat.push_back(shape[static_cast<size_t>(axis)]);
    flat.push_back(extent(shape, rows));
    flat.push_back(extent(shape, columns));
    for (const Axes* axes : {&batch, &rows, &columns})
      order.insert(order.end(), axes->begin(), axes->end());
    for (size_t k = 0; k < shape.size(); ++k) {
      const auto axis = static_cast<int64_t>(k);
      if (std::ranges::find(order, axis) == order.end()) order.push_back(axis);
    }
    return build.reshape(build.transpose(value, order), flat);
  }

  Rewriter& rewriter_;
  const Graph& graph_;
  std::vector<size_t> readers_;  // by value; outputs of the graph are read
};

}  // namespace

Graph raise_sums_of_products(const Graph& graph) {
  Rewriter rewriter(graph);
  SumRaiser raiser(rewriter);
  for (const Node& node : graph.nodes()) {
    if (!raiser.rewrite(node)) rewriter.copy(node);
  }
  return std::move(rewriter).finish();
}

}  // namespace autosp::transforms
