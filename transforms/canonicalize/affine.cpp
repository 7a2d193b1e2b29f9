#include "transforms/canonicalize/affine.h"

#include <algorithm>

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Shape;

namespace {

using MaybeAffine = std::optional<Affine>;

MaybeAffine uniform_of(Shape shape, int64_t value) {
  std::vector<int64_t> strides(shape.size(), 0);
  return Affine{std::move(shape), value, std::move(strides)};
}

// Reads the strides off the first entry along every axis, then checks every entry.
MaybeAffine affine_of_entries(const Shape& shape, const std::vector<int64_t>& entries) {
  if (entries.empty()) return std::nullopt;
  Affine result{shape, entries[0], std::vector<int64_t>(shape.size(), 0)};
  size_t step = 1;
  for (size_t k = shape.size(); k-- > 0;) {
    if (shape[k] > 1) result.strides[k] = entries[step] - entries[0];
    step *= static_cast<size_t>(shape[k]);
  }
  std::vector<int64_t> index(shape.size(), 0);
  int64_t expected = result.offset;
  for (int64_t entry : entries) {
    if (entry != expected) return std::nullopt;
    for (size_t k = shape.size(); k-- > 0;) {
      expected += result.strides[k];
      if (++index[k] < shape[k]) break;
      expected -= result.strides[k] * shape[k];
      index[k] = 0;
    }
  }
  return result;
}

// `shape` is one that x broadcasts to.
Affine expand(const Affine& x, const Shape& shape) {
  Affine result{shape, x.offset, std::vector<int64_t>(shape.size(), 0)};
  const size_t added = shape.size() - x.shape.size();
  std::ranges::copy(x.strides, result.strides.begin() + static_cast<int64_t>(added));
  return result;
}

// Splits and merges axes as numpy reshapes a strided array without copying.
MaybeAffine reshape(const Affine& x, const Shape& shape) {
  if (ir::num_elements(shape) == 0) return std::nullopt;
  Affine result{shape, x.offset, std::vector<int64_t>(shape.size(), 0)};
  std::vector<size_t> from;
  std::vector<size_t> to;
  for (size_t k = 0; k < x.shape.size(); ++k) {
    if (x.shape[k] != 1) from.push_back(k);
  }
  for (size_t k = 0; k < shape.size(); ++k) {
    if (shape[k] != 1) to.push_back(k);
  }
  for (size_t f = 0, t = 0; f < from.size();) {
    size_t f_end = f;
    size_t t_end = t;
    int64_t from_size = x.shape[from[f_end++]];
    int64_t to_size = shape[to[t_end++]];
    while (from_size != to_size) {
      if (from_size < to_size) {
        from_size *= x.shape[from[f_end++]];
      } else {
        to_size *= shape[to[t_end++]];
      }
    }
    for (size_t k = f; k + 1 < f_end; ++k) {
      if (x.strides[from[k]] != x.strides[from[k + 1]] * x.shape[from[k + 1]]) return std::nullopt;
    }
    int64_t stride = x.strides[from[f_end - 1]];
    for (size_t k = t_end; k-- > t;) {
      result.strides[to[k]] = stride;
      stride *= shape[to[k]];
    }
    f = f_end;
    t = t_end;
  }
  return result;
}

// a + scale * b, broadcast.
Affine combine(const Affine& a, const Affine& b, int64_t scale) {
  const Shape shape = ir::broadcast(a.shape, b.shape);
  Affine result = expand(a, shape);
  const Affine other = expand(b, shape);
  result.offset += scale * other.offset;
  for (size_t k = 0; k < shape.size(); ++k) result.strides[k] += scale * other.strides[k];
  return result;
}

MaybeAffine multiply(const Affine& a, const Affine& b) {
  if (!b.uniform()) return a.uniform() ? multiply(b, a) : std::nullopt;
  Affine result = expand(a, ir::broadcast(a.shape, b.shape));
  result.offset *= b.offset;
  for (int64_t& stride : result.strides) stride *= b.offset;
  return result;
}

// `x` compared with zero; nullopt when it depends on the index.
std::optional<bool> is_negative(const Affine& x) {
  if (x.greatest() < 0) return true;
  if (x.least() >= 0) return false;
  return std::nullopt;
}

std::optional<bool> negated(std::optional<bool> x) {
  if (!x) return std::nullopt;
  return !*x;
}

MaybeAffine transpose(const Affine& x, std::vector<int64_t> permutation) {
  if (permutation.empty()) {
    for (size_t k = x.shape.size(); k-- > 0;) permutation.push_back(static_cast<int64_t>(k));
  }
  Affine result{{}, x.offset, {}};
  for (int64_t axis : permutation) {
    result.shape.push_back(x.shape[static_cast<size_t>(axis)]);
    result.strides.push_back(x.strides[static_cast<size_t>(axis)]);
  }
  return result;
}

MaybeAffine slice(const Graph& graph, const Node& node, const Affine& x, const Shape& shape) {
  const auto starts = graph.constant_ints(node.input(1));
  if (!starts) return std::nullopt;
  std::vector<int64_t> axes;
  for (size_t k = 0; k < starts->size(); ++k) axes.push_back(static_cast<int64_t>(k));
  if (node.input(3)) {
    const auto given = graph.constant_ints(node.input(3));
    if (!given) return std::nullopt;
    axes = *given;
  }
  std::vector<int64_t> steps(starts->size(), 1);
  if (node.input(4)) {
    const auto given = graph.constant_ints(node.input(4));
    if (!given) return std::nullopt;
    steps = *given;
  }
  Affine result{shape, x.offset, x.strides};
  for (size_t k = 0; k < axes.size(); ++k) {
    const size_t axis = ir::normalize_axis(axes[k], x.shape.size());
    const int64_t extent = x.shape[axis];
    int64_t start = (*starts)[k] < 0 ? (*starts)[k] + extent : (*starts)[k];
    start = std::clamp<int64_t>(start, 0, steps[k] < 0 ? extent - 1 : extent);
    result.offset += start * x.strides[axis];
    result.strides[axis] = shape[axis] == 1 ? 0 : x.strides[axis] * steps[k];
  }
  return result;
}

}  // namespace

int64_t Affine::least() const {
  int64_t result = offset;
  for (size_t k = 0; k < shape.size(); ++k) {
    result += std::min<int64_t>(0, strides[k] * (shape[k] - 1));
  }
  return result;
}

int64_t Affine::greatest() const {
  int64_t result = offset;
  for (size_t k = 0; k < shape.size(); ++k) {
    result += std::max<int64_t>(0, strides[k] * (shape[k] - 1));
  }
  return result;
}

bool Affine::uniform() const {
  return std::ranges::all_of(strides, [](int64_t stride) { return stride == 0; });
}

MaybeAffine AffineAnalysis::find(ValueId value) {
  if (!value) return std::nullopt;
  const auto known = memo_.find(value);
  if (known != memo_.end()) return known->second;
  MaybeAffine result = compute(value);
  memo_.emplace(value, result);
  return result;
}

MaybeAffine AffineAnalysis::compute(ValueId value) {
  const ir::Type& type = graph_->type(value);
  if (ir::is_floating(type.dtype) || type.num_elements() == 0) return std::nullopt;
  if (graph_->is_constant(value)) {
    return affine_of_entries(type.shape, graph_->constant(value).as_int64s());
  }
  const Node* node = graph_->producer(value);
  if (node == nullptr || !node->domain.empty()) return std::nullopt;
  if (node->op == "Range") {
    const MaybeAffine start = find(node->input(0));
    const MaybeAffine step = find(node->input(2));
    if (!start || !step) return std::nullopt;
    return Affine{type.shape, start->offset, {type.shape[0] == 1 ? 0 : step->offset}};
  }
  if (node->op == "ConstantOfShape") {
    const ir::Tensor* fill = node->attributes.get_tensor("value");
    return uniform_of(type.shape, fill == nullptr ? 0 : fill->as_int64s()[0]);
  }
  if (node->op == "Cast" && ir::is_floating(graph_->type(node->input(0)).dtype)) {
    return std::nullopt;
  }
  if (node->op == "Where") return where(*node, type.shape);
  if (MaybeAffine result = compute_elementwise(*node)) return result;
  if (MaybeAffine result = compute_comparison(*node)) return result;
  return compute_view(*node, type.shape);
}

MaybeAffine AffineAnalysis::where(const Node& node, const Shape& shape) {
  const MaybeAffine condition = find(node.input(0));
  if (!condition || !condition->uniform()) return std::nullopt;
  const MaybeAffine chosen = find(node.input(condition->offset != 0 ? 1 : 2));
  if (!chosen) return std::nullopt;
  return expand(*chosen, shape);
}

MaybeAffine AffineAnalysis::compute_elementwise(const Node& node) {
  const std::string& op = node.op;
  if (op != "Add" && op != "Sub" && op != "Mul" && op != "Neg" && op != "Max" && op != "Min") {
    return std::nullopt;
  }
  MaybeAffine a = find(node.input(0));
  if (!a) return std::nullopt;
  if (op == "Neg") return combine(Affine{{}, 0, {}}, *a, -1);
  if (node.inputs.size() != 2) return std::nullopt;
  const MaybeAffine b = find(node.input(1));
  if (!b) return std::nullopt;
  if (op == "Add") return combine(*a, *b, 1);
  if (op == "Sub") return combine(*a, *b, -1);
  if (op == "Mul") return multiply(*a, *b);
  const std::optional<bool> less = is_negative(combine(*a, *b, -1));
  if (!less) return std::nullopt;
  return expand(*less == (op == "Min") ? *a : *b, ir::broadcast(a->shape, b->shape));
}

MaybeAffine AffineAnalysis::compute_comparison(const Node& node) {
  const std::string& op = node.op;
  const MaybeAffine a = find(node.input(0));
  const MaybeAffine b = find(node.input(1));
  if (op == "Not") {
    return a && a->uniform() ? uniform_of(a->shape, a->offset == 0 ? 1 : 0) : std::nullopt;
  }
  if (node.inputs.size() != 2 || !a || !b) return std::nullopt;
  const bool both_uniform = a->uniform() && b->uniform();
  std::optional<bool> result;
  if (op == "Less") {
    result = is_negative(combine(*a, *b, -1));
  } else if (op == "Greater") {
    result = is_negative(combine(*b, *a, -1));
  } else if (op == "LessOrEqual") {
    result = negated(is_negative(combine(*b, *a, -1)));
  } else if (op == "GreaterOrEqual") {
    result = negated(is_negative(combine(*a, *b, -1)));
  } else if (op == "Equal") {
    const Affine difference = combine(*a, *b, -1);
    if (difference.uniform()) result = difference.offset == 0;
    if (difference.least() > 0 || difference.greatest() < 0) result = false;
  } else if (op == "And" && both_uniform) {
    result = a->offset != 0 && b->offset != 0;
  } else if (op == "Or" && both_uniform) {
    result = a->offset != 0 || b->offset != 0;
  }
  if (!result) return std::nullopt;
  return uniform_of(ir::broadcast(a->shape, b->shape), *result ? 1 : 0);
}

MaybeAffine AffineAnalysis::compute_view(const Node& node, const Shape& shape) {
  const std::string& op = node.op;
  MaybeAffine x = find(node.input(0));
  if (!x) return std::nullopt;
  if (op == "Cast" && graph_->type(node.output(0)).dtype == ir::DataType::kBool) {
    return x->uniform() ? uniform_of(shape, x->offset != 0 ? 1 : 0) : std::nullopt;
  }
  if (op == "Identity" || op == "Cast") return x;
  if (op == "Reshape" || op == "Squeeze" || op == "Unsqueeze" || op == "Flatten") {
    return reshape(*x, shape);
  }
  if (op == "Expand") return expand(*x, shape);
  if (op == "Transpose") return transpose(*x, node.attributes.get_ints("perm"));
  if (op == "Slice") return slice(*graph_, node, *x, shape);
  return std::nullopt;
}

std::optional<std::vector<Affine>> AffineAnalysis::find_columns(ValueId value) {
  const Shape& shape = graph_->shape(value);
  if (shape.empty() || graph_->type(value).num_elements() == 0) return std::nullopt;
  const auto count = static_cast<size_t>(shape.back());
  const Shape rows(shape.begin(), shape.end() - 1);
  std::vector<Affine> columns;

  if (graph_->is_constant(value)) {
    const std::vector<int64_t> entries = graph_->constant(value).as_int64s();
    for (size_t c = 0; c < count; ++c) {
      std::vector<int64_t> column;
      for (size_t k = c; k < entries.size(); k += count) column.push_back(entries[k]);
      const MaybeAffine found = affine_of_entries(rows, column);
      if (!found) return std::nullopt;
      columns.push_back(*found);
    }
    return columns;
  }
  if (const MaybeAffine whole = find(value)) {
    Affine column{rows, whole->offset, whole->strides};
    column.strides.pop_back();
    for (size_t c = 0; c < count; ++c, column.offset += whole->strides.back()) {
      columns.push_back(column);
    }
    return columns;
  }
  const Node* node = graph_->producer(value);
  if (node == nullptr || !node->domain.empty()) return std::nullopt;
  if (node->op == "Concat" &&
      ir::normalize_axis(node->attributes.get_int("axis", 0), shape.size()) + 1 == shape.size()) {
    for (ValueId part : node->inputs) {
      const auto found = find_columns(part);
      if (!found) return std::nullopt;
      columns.insert(columns.end(), found->begin(), found->end());
    }
    return columns;
  }
  const bool expands = node->op == "Expand";
  if (expands || node->op == "Reshape" || node->op == "Unsqueeze" || node->op == "Squeeze") {
    const Shape& before = graph_->shape(node->input(0));
    if (before.empty() || before.back() != shape.back()) return std::nullopt;
    const auto found = find_columns(node->input(0));
    if (!found) return std::nullopt;
    for (const Affine& column : *found) {
      const MaybeAffine viewed =
          expands ? MaybeAffine(expand(column, rows)) : reshape(column, rows);
      if (!viewed) return std::nullopt;
      columns.push_back(*viewed);
    }
    return columns;
  }
  if (node->op == "Identity") return find_columns(node->input(0));
  return std::nullopt;
}

}  // namespace autosp::transforms
