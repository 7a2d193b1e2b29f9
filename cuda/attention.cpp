#include "cuda/attention.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "cuda/device.h"
#include "cuda/kernels/attention_statistics.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"
#include "cuda/status.h"
#include "ir/operator_traits.h"
#include "reference/attention_problem.h"

namespace autosp::cuda {

using executor::KernelCall;
using executor::KernelRow;
using reference::AttentionProblem;

namespace {

// What a fixed order of sums may cost: no plan of memory counts it.
constexpr int64_t kMostWorkspace = int64_t{2} << 30;

}  // namespace

AttentionPlans::~AttentionPlans() {
  for (void* memory : workspaces_) cudaFree(memory);
}

CudnnAttention* AttentionPlans::find(const AttentionShape& shape) {
  const auto found = plans_.find(shape);
  if (found != plans_.end()) return found->second.get();
  return (plans_[shape] = make(shape)).get();
}

std::unique_ptr<CudnnAttention> AttentionPlans::make(const AttentionShape& shape) {
  const std::string what =
      fmt::format("attention{} of {} queries, {} keys, width {}",
                  shape.backward ? "'s gradient" : "", shape.queries, shape.keys, shape.width);
  std::string reason;
  auto made = plan(shape, what, reason);
  if (made && !has_room(made->workspace_bytes())) {
    reason = "no room for the " + format_bytes(static_cast<double>(made->workspace_bytes())) +
             " that cuDNN works in";
    made.reset();
  }
  if (made == nullptr) {
    notices_.push_back(fmt::format("{} runs in this program's own kernel: {}", what, reason));
  }
  return made;
}

// One that sums in a fixed order, where that does not cost too much.
std::unique_ptr<CudnnAttention> AttentionPlans::plan(AttentionShape shape, const std::string& what,
                                                     std::string& reason) {
  auto plan = plan_attention(shape, reason);
  const int64_t bytes = plan ? plan->workspace_bytes() : 0;
  if (!shape.backward || (plan && bytes <= kMostWorkspace && has_room(bytes))) return plan;
  shape.ordered = false;
  std::string ignored;
  auto unordered = plan_attention(shape, ignored);
  if (unordered == nullptr) return plan;
  notices_.push_back(
      fmt::format("{} is summed in no fixed order: cuDNN {} for a fixed one", what,
                  plan ? "takes " + format_bytes(static_cast<double>(bytes)) : "has no plan"));
  return unordered;
}

// Takes the memory if there is: no plan of a step counts it.
bool AttentionPlans::has_room(int64_t bytes) {
  if (bytes <= workspace_bytes_) return true;
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return false;
  }
  check(status, "taking memory for attention");
  workspaces_.push_back(memory);
  workspace_bytes_ = bytes;
  return true;
}

namespace {

// AUTOSP_CUDNN=0 leaves attention to this project's kernel.
bool wants_cudnn() {
  const char* given = std::getenv("AUTOSP_CUDNN");
  return given == nullptr || std::string(given) != "0";
}

// Operands of both operators, by position from `optional` on: bias, begin, end, key mask, segments
// (two), sink.
constexpr size_t kBegin = 1;
constexpr size_t kEnd = 2;
constexpr size_t kOptionals = 7;

std::optional<Band> band_seen(const ir::Graph& graph, const ir::Node& node,
                              const reference::AttentionOperands& operands) {
  return band_of(graph, node.input(operands.optional + kBegin),
                 node.input(operands.optional + kEnd), graph.shape(node.inputs[operands.query])[2],
                 graph.shape(node.inputs[operands.query + 1])[2]);
}

// No masks but a band, of 16 bits, in widths that tensor cores take. cuDNN itself has the last word
// when the plan is made.
bool cudnn_may_take(const ir::Graph& graph, const ir::Node& node,
                    const reference::AttentionOperands& operands) {
  const ir::Type& query = graph.type(node.inputs[operands.query]);
  const ir::Type& value = graph.type(node.inputs[operands.query + 2]);
  const bool half = query.dtype == ir::DataType::kFloat16 || query.dtype == ir::DataType::kBFloat16;
  const bool wide = query.shape[3] % 8 == 0 && value.shape[3] % 8 == 0 && query.shape[3] <= 256 &&
                    value.shape[3] <= 256;
  if (ir::drops_weights(node)) return false;
  if (!half || !wide || node.attributes.get_float("softcap", 0) != 0) return false;
  for (size_t k = 0; k < kOptionals; ++k) {
    if (k != kBegin && k != kEnd && node.input(operands.optional + k)) return false;
  }
  if (!band_seen(graph, node, operands)) return false;
  return ir::num_elements(query.shape) > 0 && ir::num_elements(value.shape) > 0;
}

// cuDNN keeps a row's maximum and sum as one number.
bool statistics_may_be_joint(const ir::Graph& graph, const ir::Node& node) {
  return node.attributes.get_int("joint_statistics", 0) != 0 ||
         ir::only_gradients_read_statistics(graph, node);
}

const KernelRow& own_row(std::string_view op) {
  const std::span<const KernelRow> rows = kernels::attention_rows();
  return *std::ranges::find(rows, op, &KernelRow::op);
}

// This project's kernel stands behind: what it does not take is not taken here.
bool fits_forward(const ir::Graph& graph, const ir::Node& node) {
  return wants_cudnn() && own_row("Attention").accepts(graph, node) &&
         cudnn_may_take(graph, node, reference::kAttention) && statistics_may_be_joint(graph, node);
}

// cuDNN's gradients on Hopper are no numbers for some rows where the last tile of keys is half full
// and they would see what pads it, and for a single query (cudnn-frontend 628 and 1072, up
// to 9.26).
bool gradient_is_sound(const ir::Graph& graph, const ir::Node& node) {
  constexpr auto kOperands = reference::kAttentionGrad;
  constexpr int64_t kTile = 128;
  const int64_t queries = graph.shape(node.inputs[kOperands.query])[2];
  const int64_t keys = graph.shape(node.inputs[kOperands.query + 1])[2];
  const std::optional<int64_t> after = band_seen(graph, node, kOperands)->after;
  const bool sees_padding = !after || queries - 1 + *after >= keys;
  return queries > 1 && (keys % kTile != kTile / 2 || !sees_padding);
}

bool fits_backward(const ir::Graph& graph, const ir::Node& node) {
  return wants_cudnn() && own_row("AttentionGrad").accepts(graph, node) && !node.output(4) &&
         cudnn_may_take(graph, node, reference::kAttentionGrad) && gradient_is_sound(graph, node);
}

// The own kernel's, which takes over where cuDNN has no plan.
int64_t workspace(const ir::Graph& graph, const ir::Node& node, int workers) {
  return own_row(node.op).workspace(graph, node, workers);
}

// `keeps`: the forward pass keeps its statistics, as the backward pass needs them.
AttentionShape shape_of(const KernelCall& call, const AttentionProblem& p, bool backward,
                        bool keeps) {
  const auto& operands = backward ? reference::kAttentionGrad : reference::kAttention;
  return {.type = call.call.operands[0].dtype,
          .batch = p.batch,
          .query_heads = p.query_heads,
          .kv_heads = p.kv_heads,
          .queries = p.queries,
          .keys = p.keys,
          .width = p.width,
          .value_width = p.value_width,
          .scale = p.scale,
          .band = *band_seen(*call.graph, call.call.node, operands),
          .backward = backward,
          .keeps_statistics = keeps};
}

void run(const KernelCall& call, CudnnAttention& plan, const AttentionArrays& arrays) {
  CudaDevice& device = device_of(call.device);
  plan.run(arrays, device.attention().workspace(), device.stream(call.stream));
}

void attention(const KernelCall& call) {
  const AttentionProblem p = reference::attention_problem(call.call, reference::kAttention);
  const auto& operands = call.call.operands;
  const auto& maxima = kernels::result(call, 1);
  const auto& sums = kernels::result(call, 2);
  const bool keeps = static_cast<bool>(maxima);
  CudnnAttention* plan = device_of(call.device).attention().find(shape_of(call, p, false, keeps));
  if (plan == nullptr || (sums && !keeps)) return own_row("Attention").function(call);
  run(call, *plan,
      {.query = operands[0].data,
       .key = operands[1].data,
       .value = operands[2].data,
       .output = call.call.results[0].data,
       .statistics = keeps ? static_cast<float*>(maxima.data) : nullptr});
  if (sums) {
    kernels::set_sums_to_one(kernels::Queue(call), p.batch * p.query_heads * p.queries,
                             static_cast<float*>(sums.data));
  }
}

void attention_grad(const KernelCall& call) {
  const AttentionProblem p = reference::attention_problem(call.call, reference::kAttentionGrad);
  const auto& operands = call.call.operands;
  const auto& results = call.call.results;
  CudnnAttention* plan = device_of(call.device).attention().find(shape_of(call, p, true, true));
  if (plan == nullptr) return own_row("AttentionGrad").function(call);
  auto* statistics = reinterpret_cast<float*>(call.workspace);
  kernels::join_statistics(kernels::Queue(call), p.batch * p.query_heads * p.queries, statistics,
                           static_cast<const float*>(operands[5].data),
                           static_cast<const float*>(operands[6].data));
  run(call, *plan,
      {.query = operands[1].data,
       .key = operands[2].data,
       .value = operands[3].data,
       .output = const_cast<void*>(operands[4].data),  // NOLINT: only read here
       .statistics = statistics,
       .output_gradient = operands[0].data,
       .query_gradient = results[0].data,
       .key_gradient = results[1].data,
       .value_gradient = results[2].data});
}

constexpr KernelRow kRows[] = {
    {ir::kAutospDomain, "Attention", fits_forward, attention, workspace},
    {ir::kAutospDomain, "AttentionGrad", fits_backward, attention_grad, workspace},
};

}  // namespace

std::span<const KernelRow> cudnn_rows() { return kRows; }

}  // namespace autosp::cuda
