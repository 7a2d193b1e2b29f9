// The operators of ai.onnx.preview.training: one step of an optimizer on any number of tensors, in
// one launch per tensor.
//
// Operations are those of src/reference/training.cpp, in that order, and this file is compiled
// without contracting products and sums: parameters and states have the CPU's bits. Learning rate
// and update count are read where they lie in device memory, so that a step that is replayed sees
// what was fed since it was captured.
#include "base/integer_power.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"
#include "ir/operator_traits.h"

namespace autosp::kernels {

namespace {

using Types = TypeList<float, double>;

// What an update is, of elements of type T: its states; a Step of numbers that all elements share,
// from learning rate and update count; the new weight of an element, whose states it changes.

template <typename T>
struct Momentum {
  static constexpr int kStates = 1;
  struct Step {
    T rate;
    T beta;
  };
  T alpha;
  T beta;
  T norm;
  bool nesterov;

  explicit Momentum(const ir::Attributes& attributes)
      : alpha(attributes.get_float("alpha", 0)),
        beta(attributes.get_float("beta", 0)),
        norm(attributes.get_float("norm_coefficient", 0)),
        nesterov(attributes.get_string("mode", "standard") == "nesterov") {}

  AUTOSP_DEVICE Step step(double rate, int64_t count) const {
    return {static_cast<T>(rate), count > 0 ? beta : T{1}};
  }
  AUTOSP_DEVICE T update(const Step& step, T x, T g, T* state) const {
    const T gradient = norm * x + g;
    const T velocity = alpha * state[0] + step.beta * gradient;
    state[0] = velocity;
    return x - step.rate * (nesterov ? gradient + alpha * velocity : velocity);
  }
};

template <typename T>
struct Adagrad {
  static constexpr int kStates = 1;
  struct Step {
    T rate;
  };
  T decay;
  T epsilon;
  T norm;

  explicit Adagrad(const ir::Attributes& attributes)
      : decay(attributes.get_float("decay_factor", 0)),
        epsilon(attributes.get_float("epsilon", 1e-6F)),
        norm(attributes.get_float("norm_coefficient", 0)) {}

  AUTOSP_DEVICE Step step(double rate, int64_t count) const {
    return {static_cast<T>(rate) / (1 + static_cast<T>(count) * decay)};
  }
  AUTOSP_DEVICE T update(const Step& step, T x, T g, T* state) const {
    const T gradient = norm * x + g;
    const T squares = state[0] + gradient * gradient;
    state[0] = squares;
    return x - step.rate * gradient / (sqrt(squares) + epsilon);
  }
};

template <typename T>
struct Adam {
  static constexpr int kStates = 2;
  struct Step {
    T rate;  // with the bias of mean and squares corrected
  };
  T alpha;
  T beta;
  T epsilon;
  T norm;
  T kept;

  explicit Adam(const ir::Attributes& attributes)
      : alpha(attributes.get_float("alpha", 0.9F)),
        beta(attributes.get_float("beta", 0.999F)),
        epsilon(attributes.get_float("epsilon", 1e-6F)),
        norm(attributes.get_float("norm_coefficient", 0)),
        kept(1 - attributes.get_float("norm_coefficient_post", 0)) {}

  AUTOSP_DEVICE Step step(double rate, int64_t count) const {
    if (count <= 0) return {static_cast<T>(rate)};
    return {static_cast<T>(rate * sqrt(1 - integer_power(static_cast<double>(beta), count)) /
                           (1 - integer_power(static_cast<double>(alpha), count)))};
  }
  AUTOSP_DEVICE T update(const Step& step, T x, T g, T* state) const {
    const T gradient = norm * x + g;
    const T mean = alpha * state[0] + (1 - alpha) * gradient;
    const T squares = beta * state[1] + (1 - beta) * gradient * gradient;
    state[0] = mean;
    state[1] = squares;
    return kept * (x - step.rate * mean / (sqrt(squares) + epsilon));
  }
};

// A block takes kPacks packs per thread of one tensor; its first thread makes the step for all.
template <typename T, typename Rule>
struct Update {
  static constexpr int kStates = Rule::kStates;
  static constexpr int kCount = kPack<T>;
  static constexpr int kPacks = 4;
  static constexpr int64_t kRow = int64_t{kLanes} * kPacks * kCount;  // elements of a block
  using Shared = typename Rule::Step;

  Rule rule;
  const void* rate;  // double or float
  bool rate_is_double;
  const int64_t* count;
  int64_t size;  // elements of each of the following
  const T* x;
  const T* g;
  const T* state[kStates];
  T* new_x;
  T* new_state[kStates];

  AUTOSP_DEVICE int phases() const { return 2; }

  AUTOSP_DEVICE void operator()(int64_t row, int lane, int phase, Shared& shared) const {
    if (phase == 0) {
      if (lane == 0) shared = rule.step(read_rate(), *count);
      return;
    }
    for (int k = 0; k < kPacks; ++k) {
      update_pack((row * kPacks + k) * kLanes + lane, shared);
    }
  }

 private:
  AUTOSP_DEVICE double read_rate() const {
    return rate_is_double ? *static_cast<const double*>(rate) : *static_cast<const float*>(rate);
  }

  AUTOSP_DEVICE void update_pack(int64_t pack, const Shared& step) const {
    const int64_t begin = pack * kCount;
    if (begin + kCount > size) {
      for (int64_t i = begin; i < size; ++i) update_element(i, step);
      return;
    }
    using Vector = Pack<T, kCount>;
    Vector weight = reinterpret_cast<const Vector*>(x)[pack];
    const Vector gradient = reinterpret_cast<const Vector*>(g)[pack];
    Vector states[kStates];
    for (int s = 0; s < kStates; ++s) states[s] = reinterpret_cast<const Vector*>(state[s])[pack];
    for (int i = 0; i < kCount; ++i) {
      T own[kStates];
      for (int s = 0; s < kStates; ++s) own[s] = states[s].element[i];
      weight.element[i] = rule.update(step, weight.element[i], gradient.element[i], own);
      for (int s = 0; s < kStates; ++s) states[s].element[i] = own[s];
    }
    reinterpret_cast<Vector*>(new_x)[pack] = weight;
    for (int s = 0; s < kStates; ++s) reinterpret_cast<Vector*>(new_state[s])[pack] = states[s];
  }

  AUTOSP_DEVICE void update_element(int64_t i, const Shared& step) const {
    T own[kStates];
    for (int s = 0; s < kStates; ++s) own[s] = state[s][i];
    new_x[i] = rule.update(step, x[i], g[i], own);
    for (int s = 0; s < kStates; ++s) new_state[s][i] = own[s];
  }
};

// Operands are rate and count, then weights, gradients and each kind of state, `tensors` of each.
constexpr size_t kFirst = 2;

// Tensor k of `tensors`.
template <typename T, typename Rule>
void update_tensor(const executor::KernelCall& call, size_t tensors, size_t k) {
  const auto& operands = call.call.operands;
  const auto& results = call.call.results;
  const auto aligned = [](auto* pointer) {
    AUTOSP_CHECK(aligned_for<T>(pointer, kPack<T>), "data are not aligned");
    return pointer;
  };
  const auto operand = [&](size_t kind) {
    return aligned(data<T>(operands[kFirst + kind * tensors + k]));
  };
  const auto result = [&](size_t kind) { return aligned(data<T>(results[kind * tensors + k])); };
  using Body = Update<T, Rule>;
  Body body{.rule = Rule(call.call.node.attributes),
            .rate = operands[0].data,
            .rate_is_double = operands[0].dtype == ir::DataType::kFloat64,
            .count = data<int64_t>(operands[1]),
            .size = ir::num_elements(*operands[kFirst + k].shape),
            .x = operand(0),
            .g = operand(1),
            .state = {},
            .new_x = result(0),
            .new_state = {}};
  for (size_t s = 0; s < Rule::kStates; ++s) {
    body.state[s] = operand(2 + s);
    body.new_state[s] = result(1 + s);
  }
  launch_rows(Queue(call), (body.size + Body::kRow - 1) / Body::kRow, body);
}

template <template <typename> typename Rule>
constexpr size_t kKinds = 2 + Rule<float>::kStates;

template <template <typename> typename Rule>
void optimizer(const executor::KernelCall& call) {
  const auto& operands = call.call.operands;
  const size_t tensors = (operands.size() - kFirst) / kKinds<Rule>;
  for (size_t k = 0; k < tensors; ++k) {
    visit(Types{}, operands[kFirst + k].dtype,
          [&]<typename T>(std::type_identity<T>) { update_tensor<T, Rule<T>>(call, tensors, k); });
  }
}

template <template <typename> typename Rule>
bool is_whole(const ir::Graph& graph, const ir::Node& node) {
  if (node.inputs.size() < kFirst || (node.inputs.size() - kFirst) % kKinds<Rule> != 0)
    return false;
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    const ir::DataType type = graph.type(node.inputs[k]).dtype;
    if (k == 1 ? type != ir::DataType::kInt64 : !contains(Types{}, type)) return false;
  }
  return true;
}

constexpr auto kUpdated = reference::Aliasing::kUpdated;

constexpr KernelRow kRows[] = {
    {ir::kTrainingDomain, "Adagrad", is_whole<Adagrad>, optimizer<Adagrad>, nullptr, kUpdated},
    {ir::kTrainingDomain, "Adam", is_whole<Adam>, optimizer<Adam>, nullptr, kUpdated},
    {ir::kTrainingDomain, "Momentum", is_whole<Momentum>, optimizer<Momentum>, nullptr, kUpdated},
};

}  // namespace

std::span<const KernelRow> optimizer_rows() { return kRows; }

}  // namespace autosp::kernels
