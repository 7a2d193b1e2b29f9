// The collectives of docs/collectives.md, and RecomputeBarrier, as custom operators of ONNX
// Runtime.
//
// A stock runtime opens this library by SessionOptions.register_custom_ops_library, which calls
// RegisterCustomOps at the end of this file. Kernels are the bundled executor's: here, tensors and
// attributes of the runtime only become operands and attributes of ours.
#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>

#include "base/context.h"
#include "executor/kernels/rows.h"
#include "ir/collective_numbers.h"
#include "onnxruntime/recompute_barrier.h"
#include "onnxruntime/session_settings.h"
#include "onnxruntime/status.h"
#include "onnxruntime/tensor.h"

namespace autosp::onnxruntime {

namespace {

constexpr const char* kDamaged = "the rank graph is damaged: shard the model again";

using Row = executor::KernelRow;

// One of the collectives, in sessions of these settings.
struct Operator : OrtCustomOp {
  Operator(const Row& row, Settings session_settings);
  const Row* row;
  std::string op;
  Settings settings;
};

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

// --- Attributes.

std::vector<int64_t> get_ints(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
  size_t count = 0;
  check(api, call(api, kGetInts, info, name, nullptr, &count));
  std::vector<int64_t> values(count);
  if (count > 0) check(api, call(api, kGetInts, info, name, values.data(), &count));
  return values;
}

// Empty where the node has none: an operand holds the numbers (docs/collectives.md).
std::vector<int64_t> get_ints_if_any(const OrtApi& api, const OrtKernelInfo* info,
                                     const char* name) {
  size_t count = 0;
  OrtStatus* status = call(api, kGetInts, info, name, nullptr, &count);
  if (status == nullptr) return get_ints(api, info, name);
  call(api, kReleaseStatus, status);
  return {};
}

std::string node_name(const OrtApi& api, const OrtKernelInfo* info) {
  size_t size = 0;
  check(api, call(api, kGetNodeName, info, nullptr, &size));
  std::string name(size, '\0');
  check(api, call(api, kGetNodeName, info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  return name;
}

ir::Node read_node(const OrtApi& api, const OrtKernelInfo* info, const Operator& op) {
  ir::Node node{
      .name = node_name(api, info), .domain = std::string(ir::kAutospDomain), .op = op.op};
  node.attributes.set("group", get_ints(api, info, "group"));
  if (op.op == "AllGather" || op.op == "ReduceScatter") {
    int64_t axis = 0;
    check(api, call(api, kGetInt, info, "axis", &axis));
    node.attributes.set("axis", axis);
  }
  for (const char* list : ir::collective_lists(op.op)) {
    node.attributes.set(list, get_ints_if_any(api, info, list));
  }
  return node;
}

// --- Kernels.

class Kernel {
 public:
  Kernel(const OrtApi& api, const OrtKernelInfo* info, const Operator& op)
      : api_(api), row_(*op.row), node_(read_node(api, info, op)), member_(join(op.settings)) {}

  void compute(OrtKernelContext* context) {
    try {
      with_context(fmt::format("in {} \"{}\"", node_.op, node_.name), kDamaged,
                   [&] { exchange(context); });
    } catch (...) {
      member_->fail(std::current_exception());
      throw;
    }
  }

  const OrtApi& api() const { return api_; }

 private:
  void exchange(OrtKernelContext* context) {
    const OrtValue* input = nullptr;
    check(api_, call(api_, kGetInput, context, 0, &input));
    const Tensor x = read_tensor(api_, input);
    // Several runs of a session may have this kernel at once, until one of them is refused.
    const std::optional<ir::Node> given = with_numbers(context, x.shape.size());
    const ir::Node& node = given ? *given : node_;
    Tensor y{.dtype = x.dtype, .shape = result_shape(node, x.shape)};
    OrtValue* output = nullptr;
    check(api_, call(api_, kGetOutput, context, 0, y.shape.data(), y.shape.size(), &output));
    check(api_, call(api_, kGetTensorData, output, &y.data));
    const reference::Operand operand{x.dtype, &x.shape, x.data};
    const reference::Result result{y.dtype, &y.shape, y.data};
    row_.function(
        {.call = {node, {&operand, 1}, {&result, 1}}, .communicator = &member_->communicator()});
    write_token(context);
  }

  // Where the next collective wants one. Its number means nothing.
  void write_token(OrtKernelContext* context) {
    size_t outputs = 0;
    check(api_, call(api_, kGetOutputCount, context, &outputs));
    if (outputs < 2) return;
    OrtValue* token = nullptr;
    check(api_, call(api_, kGetOutput, context, 1, nullptr, 0, &token));
    if (token == nullptr) return;
    void* data = nullptr;
    check(api_, call(api_, kGetTensorData, token, &data));
    *static_cast<int64_t*>(data) = 0;
  }

  // The node with the numbers of the operand that holds them; nullopt where there is none.
  std::optional<ir::Node> with_numbers(OrtKernelContext* context, size_t rank) const {
    size_t inputs = 0;
    check(api_, call(api_, kGetInputCount, context, &inputs));
    const OrtValue* input = nullptr;
    if (inputs > 2) check(api_, call(api_, kGetInput, context, 2, &input));
    if (input == nullptr) return std::nullopt;
    ir::Node node = node_;
    const Tensor numbers = read_tensor(api_, input);
    const auto* begin = static_cast<const int64_t*>(numbers.data);
    const auto count = static_cast<size_t>(ir::num_elements(numbers.shape));
    ir::set_collective_lists(node.op, {begin, count}, rank, "the node", node.attributes);
    return node;
  }

  // Its extents are checked against the operand's where the collective is.
  ir::Shape result_shape(const ir::Node& node, const ir::Shape& operand) const {
    if (node.op == "AllReduce") return operand;
    if (node.op == "AllToAll") return node.attributes.get_ints("shape");
    const std::vector<int64_t> sizes = node.attributes.get_ints("sizes");
    const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), operand.size());
    if (axis >= operand.size()) {
      throw Error("axis {} of {}", node.attributes.get_int("axis", 0), ir::to_string(operand));
    }
    ir::Shape shape = operand;
    shape[axis] = node.op == "AllGather" ? std::accumulate(sizes.begin(), sizes.end(), int64_t{0})
                                         : sizes.at(position());
    return shape;
  }

  // Of this rank in the group.
  size_t position() const {
    const std::vector<int64_t> group = node_.attributes.get_ints("group");
    const auto at = std::ranges::find(group, member_->communicator().rank());
    if (at == group.end()) {
      throw Error("rank {} executes a collective of a group that it is not in",
                  member_->communicator().rank());
    }
    return static_cast<size_t>(at - group.begin());
  }

  const OrtApi& api_;
  const Row& row_;
  ir::Node node_;
  std::shared_ptr<Member> member_;
};

// --- What the runtime calls.

OrtStatus* make_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                       void** kernel) {
  return guarded(*api, [&] { *kernel = new Kernel(*api, info, self(op)); });
}

OrtStatus* run_kernel(void* kernel, OrtKernelContext* context) {
  auto& own = *static_cast<Kernel*>(kernel);
  return guarded(own.api(), [&] { own.compute(context); });
}

ElementType element_type(const OrtCustomOp* /*op*/, size_t index) {
  return index == 0 ? ElementType::kUndefined : ElementType::kInt64;
}

Arity arity(const OrtCustomOp* /*op*/, size_t index) {
  return index == 0 ? Arity::kRequired : Arity::kOptional;
}

Operator::Operator(const Row& kernel_row, Settings session_settings)
    : row(&kernel_row), op(kernel_row.op), settings(std::move(session_settings)) {
  name = [](const OrtCustomOp* op) { return self(op).op.c_str(); };
  execution_provider = [](const OrtCustomOp*) -> const char* { return nullptr; };
  // Operand and result of any type, then the tokens and the numbers.
  input_type = element_type;
  input_count = [](const OrtCustomOp* op) -> size_t {
    return ir::collective_lists(self(op).op).empty() ? 2 : 3;
  };
  output_type = element_type;
  output_count = [](const OrtCustomOp*) -> size_t { return 2; };
  destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  input_arity = arity;
  output_arity = arity;
  input_memory = [](const OrtCustomOp*, size_t) { return MemoryType::kDefault; };
  create_kernel_or_fail = make_kernel;
  compute_or_fail = run_kernel;
}

// The operators of one session. Sessions do not say when they end, so these stay for good.
void register_operators(const OrtApi& api, std::string_view version, OrtSessionOptions* options) {
  const Settings settings = read_settings(api, *options);
  OrtCustomOpDomain* domain = nullptr;
  check(api, call(api, kCreateDomain, std::string(ir::kAutospDomain).c_str(), &domain));
  for (const Row& row : executor::collective_rows()) {
    check(api, call(api, kAddToDomain, domain, new Operator(row, settings)));
  }
  if (takes_recompute_barrier(version)) {
    check(api, call(api, kAddToDomain, domain, make_recompute_barrier(api)));
  }
  check(api, call(api, kAddDomain, options, domain));
}

}  // namespace

}  // namespace autosp::onnxruntime

// The name is ONNX Runtime's.
extern "C" __attribute__((visibility("default"))) autosp::onnxruntime::OrtStatus* RegisterCustomOps(
    autosp::onnxruntime::OrtSessionOptions* options, const autosp::onnxruntime::OrtApiBase* base) {
  using namespace autosp::onnxruntime;
  if (const OrtApi* api = base->get_api(kApiVersion)) {
    return guarded(*api, [&] { register_operators(*api, base->get_version(), options); });
  }
  const OrtApi* oldest = base->get_api(1);
  return call(*oldest, kCreateStatus, ErrorCode::kFail,
              "error: this ONNX Runtime is older than 1.17");
}

// For whoever runs the ranks of a world of threads: one of them failed outside of a collective, and
// the others are not to wait for it.
extern "C" __attribute__((visibility("default"))) void AutospFailRank(const char* world, int rank,
                                                                      const char* reason) {
  try {
    autosp::onnxruntime::fail_rank(world, rank, reason);
  } catch (...) {  // then they wait as long as they would without
    return;
  }
}
