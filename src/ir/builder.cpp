#include "ir/builder.h"

#include <algorithm>
#include <unordered_set>

namespace autosp::ir {

namespace {

bool yields_bool(const std::string& op) {
  static const std::unordered_set<std::string> kOps = {
      "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And",
      "Or",    "Xor",  "Not",         "IsNaN",   "IsInf"};
  return kOps.contains(op);
}

std::vector<size_t> normalized(const std::vector<int64_t>& axes, size_t rank) {
  std::vector<size_t> result;
  for (int64_t axis : axes) result.push_back(normalize_axis(axis, rank));
  std::ranges::sort(result);
  return result;
}

}  // namespace

ValueId Builder::node(std::string op, std::vector<ValueId> inputs, Type result,
                      Attributes attributes, std::string domain, std::string name) {
  return node(std::move(op), std::move(inputs), std::vector<Type>{std::move(result)},
              std::move(attributes), std::move(domain),
              std::vector<std::string>{std::move(name)})[0];
}

std::vector<ValueId> Builder::node(std::string op, std::vector<ValueId> inputs,
                                   std::vector<Type> results, Attributes attributes,
                                   std::string domain, std::vector<std::string> names) {
  const NodeId id = graph_->add_node(std::move(op), std::move(inputs), std::move(results),
                                     std::move(attributes), std::move(domain), std::move(names));
  return graph_->node(id).outputs;
}

ValueId Builder::unary(const std::string& op, ValueId x, std::string name) {
  return node(op, {x}, Type{yields_bool(op) ? DataType::kBool : dtype(x), shape(x)}, {}, "",
              std::move(name));
}

ValueId Builder::binary(const std::string& op, ValueId a, ValueId b, std::string name) {
  AUTOSP_CHECK(dtype(a) == dtype(b), "{} of {} and {}", op, to_string(graph_->type(a)),
               to_string(graph_->type(b)));
  return node(op, {a, b},
              Type{yields_bool(op) ? DataType::kBool : dtype(a), broadcast(shape(a), shape(b))}, {},
              "", std::move(name));
}

ValueId Builder::sum(std::vector<ValueId> terms, std::string name) {
  AUTOSP_CHECK(!terms.empty());
  if (terms.size() == 1) return terms[0];
  Shape result = shape(terms[0]);
  for (ValueId term : terms) result = broadcast(result, shape(term));
  Type type{dtype(terms[0]), std::move(result)};
  // Sum is defined for floating types only.
  if (terms.size() == 2 || !is_floating(type.dtype)) {
    ValueId total = terms[0];
    for (size_t k = 1; k < terms.size(); ++k) {
      total = binary("Add", total, terms[k], k + 1 == terms.size() ? name : "");
    }
    return total;
  }
  return node("Sum", std::move(terms), std::move(type), {}, "", std::move(name));
}

ValueId Builder::where(ValueId condition, ValueId a, ValueId b, std::string name) {
  return node("Where", {condition, a, b},
              Type{dtype(a), broadcast(shape(condition), broadcast(shape(a), shape(b)))}, {}, "",
              std::move(name));
}

ValueId Builder::cast(ValueId x, DataType to, std::string name) {
  if (dtype(x) == to) return x;
  return node("Cast", {x}, Type{to, shape(x)}, {{"to", static_cast<int64_t>(to)}}, "",
              std::move(name));
}

ValueId Builder::matmul(ValueId a, ValueId b, std::string name) {
  Shape left = shape(a);
  Shape right = shape(b);
  AUTOSP_CHECK(left.size() >= 2 && right.size() >= 2 && left.back() == right[right.size() - 2],
               "matmul of {} and {}", to_string(left), to_string(right));
  const int64_t rows = left[left.size() - 2];
  const int64_t columns = right.back();
  left.resize(left.size() - 2);
  right.resize(right.size() - 2);
  Shape result = broadcast(left, right);
  result.push_back(rows);
  result.push_back(columns);
  return node("MatMul", {a, b}, Type{dtype(a), std::move(result)}, {}, "", std::move(name));
}

ValueId Builder::reduce(const std::string& op, ValueId x, std::vector<int64_t> axes, bool keepdims,
                        std::string name) {
  if (axes.empty()) return x;
  Shape result;
  const auto reduced = normalized(axes, rank(x));
  for (size_t k = 0; k < rank(x); ++k) {
    const bool gone = std::ranges::binary_search(reduced, k);
    if (!gone) result.push_back(shape(x)[k]);
    if (gone && keepdims) result.push_back(1);
  }
  return node(op, {x, int64s(std::move(axes))}, Type{dtype(x), std::move(result)},
              {{"keepdims", int64_t{keepdims}}}, "", std::move(name));
}

ValueId Builder::softmax(const std::string& op, ValueId x, int64_t axis, std::string name) {
  return node(op, {x}, graph_->type(x), {{"axis", axis}}, "", std::move(name));
}

ValueId Builder::transpose(ValueId x, std::vector<int64_t> permutation, std::string name) {
  Shape result;
  for (int64_t axis : permutation) result.push_back(shape(x)[static_cast<size_t>(axis)]);
  return node("Transpose", {x}, Type{dtype(x), std::move(result)},
              {{"perm", std::move(permutation)}}, "", std::move(name));
}

ValueId Builder::reshape(ValueId x, Shape to, std::string name) {
  AUTOSP_CHECK(num_elements(to) == num_elements(shape(x)), "reshape of {} to {}",
               to_string(shape(x)), to_string(to));
  if (to == shape(x)) return x;
  const ValueId target = int64s(to);
  return node("Reshape", {x, target}, Type{dtype(x), std::move(to)}, {{"allowzero", int64_t{1}}},
              "", std::move(name));
}

ValueId Builder::squeeze(ValueId x, std::vector<int64_t> axes, std::string name) {
  Shape result;
  const auto gone = normalized(axes, rank(x));
  for (size_t k = 0; k < rank(x); ++k) {
    if (!std::ranges::binary_search(gone, k)) result.push_back(shape(x)[k]);
  }
  return node("Squeeze", {x, int64s(std::move(axes))}, Type{dtype(x), std::move(result)}, {}, "",
              std::move(name));
}

ValueId Builder::unsqueeze(ValueId x, std::vector<int64_t> axes, std::string name) {
  const size_t result_rank = rank(x) + axes.size();
  const auto added = normalized(axes, result_rank);
  Shape result;
  size_t next = 0;
  for (size_t k = 0; k < result_rank; ++k) {
    result.push_back(std::ranges::binary_search(added, k) ? 1 : shape(x)[next++]);
  }
  return node("Unsqueeze", {x, int64s(std::move(axes))}, Type{dtype(x), std::move(result)}, {}, "",
              std::move(name));
}

ValueId Builder::expand(ValueId x, Shape to, std::string name) {
  if (to == shape(x)) return x;
  Shape result = broadcast(shape(x), to);
  return node("Expand", {x, int64s(std::move(to))}, Type{dtype(x), std::move(result)}, {}, "",
              std::move(name));
}

ValueId Builder::slice(ValueId x, int64_t axis, int64_t begin, int64_t end, std::string name) {
  std::vector<int64_t> begins(rank(x), 0);
  std::vector<int64_t> ends = shape(x);
  const size_t at = normalize_axis(axis, rank(x));
  begins[at] = begin;
  ends[at] = end;
  return slice_all(x, begins, ends, std::move(name));
}

ValueId Builder::slice_all(ValueId x, const std::vector<int64_t>& begins,
                           const std::vector<int64_t>& ends, std::string name) {
  std::vector<int64_t> starts;
  std::vector<int64_t> stops;
  std::vector<int64_t> axes;
  Shape result;
  for (size_t k = 0; k < rank(x); ++k) {
    result.push_back(ends[k] - begins[k]);
    if (begins[k] == 0 && ends[k] == shape(x)[k]) continue;
    starts.push_back(begins[k]);
    stops.push_back(ends[k]);
    axes.push_back(static_cast<int64_t>(k));
  }
  if (axes.empty()) return x;
  return node("Slice",
              {x, int64s(std::move(starts)), int64s(std::move(stops)), int64s(std::move(axes))},
              Type{dtype(x), std::move(result)}, {}, "", std::move(name));
}

ValueId Builder::pad(ValueId x, const std::vector<int64_t>& before,
                     const std::vector<int64_t>& after, std::string name) {
  std::vector<int64_t> pads = before;
  pads.insert(pads.end(), after.begin(), after.end());
  if (std::ranges::all_of(pads, [](int64_t count) { return count == 0; })) return x;
  Shape result = shape(x);
  for (size_t k = 0; k < result.size(); ++k) result[k] += before[k] + after[k];
  return node("Pad", {x, int64s(std::move(pads))}, Type{dtype(x), std::move(result)}, {}, "",
              std::move(name));
}

ValueId Builder::concat(std::vector<ValueId> parts, int64_t axis, std::string name) {
  AUTOSP_CHECK(!parts.empty());
  if (parts.size() == 1) return parts[0];
  Shape result = shape(parts[0]);
  const size_t at = normalize_axis(axis, result.size());
  result[at] = 0;
  for (ValueId part : parts) result[at] += shape(part)[at];
  Type type{dtype(parts[0]), std::move(result)};
  return node("Concat", std::move(parts), std::move(type), {{"axis", static_cast<int64_t>(at)}}, "",
              std::move(name));
}

std::vector<ValueId> Builder::split(ValueId x, const std::vector<int64_t>& sizes, int64_t axis,
                                    const std::string& name) {
  const size_t at = normalize_axis(axis, rank(x));
  std::vector<Type> types;
  for (int64_t size : sizes) {
    Type type = graph_->type(x);
    type.shape[at] = size;
    types.push_back(std::move(type));
  }
  return node("Split", {x, int64s(sizes)}, std::move(types), {{"axis", static_cast<int64_t>(at)}},
              "", std::vector<std::string>(sizes.size(), name));
}

ValueId Builder::gather(ValueId data, ValueId indices, int64_t axis, std::string name) {
  const size_t at = normalize_axis(axis, rank(data));
  Shape result(shape(data).begin(), shape(data).begin() + static_cast<int64_t>(at));
  result.insert(result.end(), shape(indices).begin(), shape(indices).end());
  result.insert(result.end(), shape(data).begin() + static_cast<int64_t>(at) + 1,
                shape(data).end());
  return node("Gather", {data, indices}, Type{dtype(data), std::move(result)},
              {{"axis", static_cast<int64_t>(at)}}, "", std::move(name));
}

ValueId Builder::gather_elements(ValueId data, ValueId indices, int64_t axis, std::string name) {
  return node("GatherElements", {data, indices}, Type{dtype(data), shape(indices)},
              {{"axis", axis}}, "", std::move(name));
}

ValueId Builder::scatter_nd(ValueId data, ValueId indices, ValueId updates,
                            const std::string& reduction, std::string name) {
  return node("ScatterND", {data, indices, updates}, graph_->type(data), {{"reduction", reduction}},
              "", std::move(name));
}

ValueId Builder::scatter_elements(ValueId data, ValueId indices, ValueId updates, int64_t axis,
                                  const std::string& reduction, std::string name) {
  return node("ScatterElements", {data, indices, updates}, graph_->type(data),
              {{"axis", axis}, {"reduction", reduction}}, "", std::move(name));
}

ValueId Builder::zeros(Type type, std::string name) {
  const ValueId extents = int64s(type.shape);
  Attributes attributes{{"value", Tensor(Type{type.dtype, {1}})}};
  return node("ConstantOfShape", {extents}, std::move(type), std::move(attributes), "",
              std::move(name));
}

}  // namespace autosp::ir
