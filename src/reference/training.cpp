// The operators of ai.onnx.preview.training: one step of an optimizer on any number of tensors.
//
// Operands are the learning rate R, the update count T, then the parameters X_1 ... X_n, their
// gradients G_1 ... G_n and each kind of state; results are the new parameters and states.
#include <cmath>

#include "base/integer_power.h"
#include "reference/call.h"

namespace autosp::reference {

namespace {

struct Step {
  double rate = 0;
  int64_t count = 0;    // updates so far, this one included
  size_t tensors = 0;   // n
  size_t operands = 2;  // where X_1 stands
};

// `kinds` of tensors follow R and T: X, G and the states.
Step step_of(const Call& call, size_t kinds) {
  Step step;
  visit(TypeList<float, double>{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    step.rate = static_cast<double>(*data<T>(call.operands[0]));
  });
  step.count = integers(call.operands[1]).front();
  const size_t tensors = call.operands.size() - step.operands;
  if (tensors % kinds != 0) {
    throw Error("{} takes {} tensors per parameter, but has {} in all", call.node.op, kinds,
                tensors);
  }
  step.tensors = tensors / kinds;
  return step;
}

const Operand& tensor(const Call& call, const Step& step, size_t kind, size_t k) {
  return call.operands[step.operands + kind * step.tensors + k];
}

// Calls `update(k, x, g, state 0, ...)` once per tensor with typed pointers and its element count.
template <typename F>
void for_each_tensor(const Call& call, const Step& step, F&& update) {
  for (size_t k = 0; k < step.tensors; ++k) {
    const Operand& x = tensor(call, step, 0, k);
    visit(TypeList<float, double>{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
      update(std::type_identity<T>{}, k, size_of(x));
    });
  }
}

void momentum(const Call& call) {
  const Step step = step_of(call, 3);
  const ir::Attributes& attributes = call.node.attributes;
  const bool nesterov = attributes.get_string("mode", "standard") == "nesterov";
  for_each_tensor(call, step, [&]<typename T>(std::type_identity<T>, size_t k, int64_t size) {
    const T alpha = attributes.get_float("alpha", 0);
    const T beta = step.count > 0 ? attributes.get_float("beta", 0) : 1;
    const T norm = attributes.get_float("norm_coefficient", 0);
    const auto rate = static_cast<T>(step.rate);
    const T* x = data<T>(tensor(call, step, 0, k));
    const T* g = data<T>(tensor(call, step, 1, k));
    const T* v = data<T>(tensor(call, step, 2, k));
    T* new_x = data<T>(call.results[k]);
    T* new_v = data<T>(call.results[step.tensors + k]);
    for (int64_t i = 0; i < size; ++i) {
      const T gradient = norm * x[i] + g[i];
      const T velocity = alpha * v[i] + beta * gradient;
      new_v[i] = velocity;
      new_x[i] = x[i] - rate * (nesterov ? gradient + alpha * velocity : velocity);
    }
  });
}

void adagrad(const Call& call) {
  const Step step = step_of(call, 3);
  const ir::Attributes& attributes = call.node.attributes;
  for_each_tensor(call, step, [&]<typename T>(std::type_identity<T>, size_t k, int64_t size) {
    const T decay = attributes.get_float("decay_factor", 0);
    const T epsilon = attributes.get_float("epsilon", 1e-6F);
    const T norm = attributes.get_float("norm_coefficient", 0);
    const T rate = static_cast<T>(step.rate) / (1 + static_cast<T>(step.count) * decay);
    const T* x = data<T>(tensor(call, step, 0, k));
    const T* g = data<T>(tensor(call, step, 1, k));
    const T* h = data<T>(tensor(call, step, 2, k));
    T* new_x = data<T>(call.results[k]);
    T* new_h = data<T>(call.results[step.tensors + k]);
    for (int64_t i = 0; i < size; ++i) {
      const T gradient = norm * x[i] + g[i];
      const T squares = h[i] + gradient * gradient;
      new_h[i] = squares;
      new_x[i] = x[i] - rate * gradient / (std::sqrt(squares) + epsilon);
    }
  });
}

void adam(const Call& call) {
  const Step step = step_of(call, 4);
  const ir::Attributes& attributes = call.node.attributes;
  for_each_tensor(call, step, [&]<typename T>(std::type_identity<T>, size_t k, int64_t size) {
    const T alpha = attributes.get_float("alpha", 0.9F);
    const T beta = attributes.get_float("beta", 0.999F);
    const T epsilon = attributes.get_float("epsilon", 1e-6F);
    const T norm = attributes.get_float("norm_coefficient", 0);
    const T kept = 1 - attributes.get_float("norm_coefficient_post", 0);
    auto rate = static_cast<T>(step.rate);
    if (step.count > 0) {
      // In double: 1 - beta^T would lose most of its digits in float.
      rate = static_cast<T>(step.rate *
                            std::sqrt(1 - integer_power(static_cast<double>(beta), step.count)) /
                            (1 - integer_power(static_cast<double>(alpha), step.count)));
    }
    const T* x = data<T>(tensor(call, step, 0, k));
    const T* g = data<T>(tensor(call, step, 1, k));
    const T* v = data<T>(tensor(call, step, 2, k));
    const T* h = data<T>(tensor(call, step, 3, k));
    T* new_x = data<T>(call.results[k]);
    T* new_v = data<T>(call.results[step.tensors + k]);
    T* new_h = data<T>(call.results[2 * step.tensors + k]);
    for (int64_t i = 0; i < size; ++i) {
      const T gradient = norm * x[i] + g[i];
      const T mean = alpha * v[i] + (1 - alpha) * gradient;
      const T squares = beta * h[i] + (1 - beta) * gradient * gradient;
      new_v[i] = mean;
      new_h[i] = squares;
      new_x[i] = kept * (x[i] - rate * mean / (std::sqrt(squares) + epsilon));
    }
  });
}

constexpr KernelRow kRows[] = {
    {"Adagrad", adagrad, Aliasing::kUpdated},
    {"Adam", adam, Aliasing::kUpdated},
    {"Momentum", momentum, Aliasing::kUpdated},
};

}  // namespace

std::span<const KernelRow> training_kernels() { return kRows; }

}  // namespace autosp::reference
