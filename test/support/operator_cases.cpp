#include "support/operator_cases.h"

#include <algorithm>

#include "onnx/model.h"

namespace autosp::test {

using ir::DataType;
using ir::Shape;
using ir::Tensor;

namespace {

const CaseMakers& all_makers() {
  static const CaseMakers kMakers = [] {
    CaseMakers makers;
    for (CaseMakers part : {elementwise_cases(), reduction_cases(), movement_cases(),
                            indexing_cases(), attention_cases()}) {
      makers.merge(part);
      AUTOSP_CHECK(part.empty(), "two makers for {}", part.begin()->first);
    }
    return makers;
  }();
  return kMakers;
}

}  // namespace

OperatorCase draw_operator_case(const std::string& op, unsigned seed) {
  const auto found = all_makers().find(op);
  AUTOSP_CHECK(found != all_makers().end(), "{} has no maker of cases", op);
  CaseBuilder builder(seed);
  found->second(builder);
  return std::move(builder).finish();
}

std::vector<std::string> operators_with_cases() {
  std::vector<std::string> names;
  for (const auto& [op, maker] : all_makers()) names.push_back(op);
  return names;
}

int64_t CaseBuilder::integer(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator_);
}

int64_t CaseBuilder::extent() { return integer(0, 6) == 0 ? 1 : integer(2, 9); }

Shape CaseBuilder::shape(int64_t least_rank, int64_t greatest_rank) {
  Shape result(static_cast<size_t>(integer(least_rank, greatest_rank)));
  for (int64_t& e : result) e = extent();
  return result;
}

Shape CaseBuilder::broadcastable_to(const Shape& result) {
  if (integer(0, 2) == 0) return result;
  Shape shape(result.begin() + integer(0, static_cast<int64_t>(result.size())), result.end());
  for (int64_t& e : shape) {
    if (integer(0, 2) == 0) e = 1;
  }
  return shape;
}

size_t CaseBuilder::axis_of(const Shape& shape) {
  return static_cast<size_t>(integer(0, static_cast<int64_t>(shape.size()) - 1));
}

int64_t CaseBuilder::written(size_t axis, size_t rank) {
  return static_cast<int64_t>(axis) - (coin() ? static_cast<int64_t>(rank) : 0);
}

ValueId CaseBuilder::fed(Tensor tensor) {
  const std::string name = fmt::format("x{}", case_.feeds.size());
  const ValueId value = case_.graph.add_input(name, tensor.type());
  case_.feeds[name] = std::move(tensor);
  return value;
}

ValueId CaseBuilder::floats(const Shape& shape, DataType dtype) {
  std::normal_distribution<double> normal;
  const ir::Type type{dtype, shape};
  Tensor tensor(type);
  const size_t size = element_size(dtype);
  for (int64_t k = 0; k < type.num_elements(); ++k) {
    const Tensor one = Tensor::scalar(dtype, normal(generator_));
    std::ranges::copy(one.bytes(), tensor.mutable_bytes() + static_cast<size_t>(k) * size);
  }
  return fed(std::move(tensor));
}

ValueId CaseBuilder::bools(const Shape& shape) { return integers(shape, 0, 2, DataType::kBool); }

ValueId CaseBuilder::integers(const Shape& shape, int64_t low, int64_t high, DataType dtype) {
  const ir::Type type{dtype, shape};
  Tensor tensor(type);
  const size_t size = element_size(dtype);
  for (int64_t k = 0; k < type.num_elements(); ++k) {
    const Tensor one = Tensor::scalar(dtype, static_cast<double>(integer(low, high - 1)));
    std::ranges::copy(one.bytes(), tensor.mutable_bytes() + static_cast<size_t>(k) * size);
  }
  return fed(std::move(tensor));
}

void CaseBuilder::test(const std::string& op, std::vector<ValueId> inputs,
                       const ir::Attributes& attributes, size_t num_results) {
  test(op, std::move(inputs), attributes, std::vector<bool>(num_results, true));
}

void CaseBuilder::test(const std::string& op, std::vector<ValueId> inputs,
                       const ir::Attributes& attributes, const std::vector<bool>& results) {
  const size_t colons = op.find("::");
  const bool standard = colons == std::string::npos;
  const std::string domain = standard ? "" : op.substr(0, colons);
  const std::string name = standard ? op : op.substr(colons + 2);
  ir::Node probe{.name = name,
                 .domain = domain,
                 .op = name,
                 .inputs = inputs,
                 .outputs = std::vector<ValueId>(results.size()),
                 .attributes = attributes};
  for (size_t k = 0; k < results.size(); ++k) {
    if (results[k]) probe.outputs[k] = ValueId(0);  // present; which one does not matter
  }
  const std::vector<ir::Type> types = onnx_io::infer_types(case_.graph, probe);
  case_.node = case_.graph.add_node(name, std::move(inputs), types, attributes, domain);
  for (size_t k = 0; k < results.size(); ++k) {
    if (!results[k]) continue;
    case_.graph.add_output(fmt::format("y{}", k), case_.graph.node(case_.node).outputs[k]);
  }
}

}  // namespace autosp::test
