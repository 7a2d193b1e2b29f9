#include "support/random_chain.h"

#include <fmt/format.h>

#include <random>

#include "ir/builder.h"

namespace autosp::test {

namespace {

using ir::DataType;
using ir::Shape;

// A graph of random steps over one shape: operands are full, or broadcast along any dimensions.
class RandomGraph {
 public:
  RandomGraph(unsigned seed, DataType type, bool casts)
      : generator_(seed), type_(type), casts_(casts) {
    shape_ = {draw(1, 3), draw(1, 40), draw(2, 70)};
    if (draw(0, 5) == 0) shape_ = {draw(1, 3), draw(500, 3000), draw(2, 9)};
    if (draw(0, 5) == 0) shape_ = {draw(2, 20000)};
    for (int k = 0; k < 4; ++k) values_.push_back(input());
  }

  std::shared_ptr<const ir::Graph> build() && {
    const int64_t steps = draw(1, 14);
    for (int64_t k = 0; k < steps; ++k) values_.push_back(step());
    for (size_t k = 4; k < values_.size(); ++k) {
      if (draw(0, 3) == 0 || k + 1 == values_.size()) {
        graph_->add_output(fmt::format("y{}", k), values_[k]);
      }
    }
    return graph_;
  }

 private:
  int64_t draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator_);
  }
  ValueId input() { return input(type_); }
  ValueId input(DataType type) {
    Shape shape(shape_.begin() + draw(0, static_cast<int64_t>(shape_.size())), shape_.end());
    for (int64_t& extent : shape) {
      if (draw(0, 3) == 0) extent = 1;
    }
    if (draw(0, 1) == 0) shape = shape_;
    return graph_->add_input(
        fmt::format("{}{}", type == DataType::kBool ? "mask" : "x", graph_->inputs().size()),
        {type, shape});
  }
  ValueId any() {
    return values_[static_cast<size_t>(draw(0, static_cast<int64_t>(values_.size()) - 1))];
  }
  // A value with the shape's rank, so that its last axis is the shape's.
  ValueId of_full_rank() {
    const ValueId x = any();
    const bool full = build_.shape(x) == shape_;
    return full ? x : build_.expand(x, shape_);
  }
  ValueId positive(ValueId x) {
    return build_.binary("Add", build_.unary("Abs", x), build_.scalar(type_, 0.5));
  }

  ValueId step() {
    switch (draw(0, casts_ ? 19 : 17)) {
      case 0:
        return build_.unary("Neg", any());
      case 1:
        return build_.unary("Exp", build_.unary("Neg", build_.unary("Abs", any())));
      case 2:
        return build_.unary("Log", positive(any()));
      case 3:
        return build_.unary("Sqrt", positive(any()));
      case 4:
        return build_.unary("Sigmoid", any());
      case 5:
        return build_.unary("Tanh", any());
      case 6:
        return build_.unary("Relu", any());
      case 7:
        return build_.binary("Add", any(), any());
      case 8:
        return build_.binary("Sub", any(), any());
      case 9:
        return build_.binary("Mul", any(), build_.unary("Tanh", any()));
      case 10:
        return build_.binary("Div", any(), positive(any()));
      case 11:
        return build_.binary("Max", any(), any());
      case 12:
        return build_.binary("Pow", positive(any()),
                             build_.scalar(type_, draw(0, 1) == 0 ? 2 : 0.75));
      case 13: {
        const ValueId x = any();
        const ValueId y = any();
        return build_.where(input(DataType::kBool), x, y);
      }
      case 14:
        return build_.reduce_sum(build_.unary("Sigmoid", of_full_rank()),
                                 {static_cast<int64_t>(shape_.size()) - 1}, true);
      case 15:
        return build_.reduce("ReduceMax", of_full_rank(), {-1}, true);
      case 16:
        return build_.softmax("Softmax", of_full_rank(), -1);
      case 17:
        return build_.softmax("LogSoftmax", of_full_rank(), -1);
      case 18:
        return build_.cast(build_.unary("Tanh", build_.cast(any(), other_type())), type_);
      default: {
        const ValueId x = build_.cast(of_full_rank(), other_type());
        const ValueId sum = build_.reduce_sum(build_.unary("Sigmoid", x), {-1}, true);
        return build_.cast(build_.binary("Div", x, sum), type_);
      }
    }
  }

  DataType other_type() const {
    return type_ == DataType::kFloat32 ? DataType::kBFloat16 : DataType::kFloat32;
  }

  std::mt19937 generator_;
  DataType type_;
  bool casts_;
  Shape shape_;
  std::shared_ptr<ir::Graph> graph_ = std::make_shared<ir::Graph>();
  ir::Builder build_{*graph_};
  std::vector<ValueId> values_;
};

}  // namespace

std::shared_ptr<const ir::Graph> random_chain(unsigned seed) {
  return RandomGraph(seed, DataType::kFloat32, false).build();
}

std::shared_ptr<const ir::Graph> random_chain(unsigned seed, DataType type) {
  return RandomGraph(seed, type, true).build();
}

}  // namespace autosp::test
