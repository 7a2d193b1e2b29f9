#include "transforms/recompute/policies.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/error.h"
#include "ir/operator_traits.h"
#include "reference/kernels.h"
#include "transforms/canonicalize/constants.h"
#include "transforms/recompute/forward_pass.h"

namespace autosp::transforms {

std::string_view name_of(RecomputePolicy policy) {
  switch (policy) {
    case RecomputePolicy::kNone:
      return "none";
    case RecomputePolicy::kMinCut:
      return "mincut";
    case RecomputePolicy::kSac:
      return "sac";
    case RecomputePolicy::kFull:
      return "full";
  }
  return "";
}

namespace {

// Operators that a compiler of kernels would compute as part of their reader: to execute them again
// costs next to nothing.
bool is_fusible(const ir::Node& node) {
  static const std::unordered_set<std::string_view> kOps = {
      "Cast",       "Concat", "Expand",    "Gather",   "GatherElements", "LayerNormalization",
      "LogSoftmax", "Pad",    "ReduceMax", "Slice",    "ReduceMean",     "ReduceSum",
      "Softmax",    "Split",  "Tile",      "Transpose"};
  const bool elementwise =
      reference::aliasing_of(node.domain, node.op) == reference::Aliasing::kElementwise;
  return elementwise || ir::is_view(node) || ir::is_draw(node) ||
         (node.domain.empty() && kOps.contains(node.op));
}

// What depends on data alone (masks, positions, counts) is small and the same for all layers. One
// of ONNX's random operators would not draw the same again; autosp::RandomUniform does. What
// something is chosen by has to stay as it is.
bool never_twice(const ForwardPass& forward, size_t k) {
  if (forward.is_decisive(k)) return true;
  const ir::Node* node = forward.node(k);
  if (node != nullptr && is_random(*node) && !ir::is_draw(*node)) return true;
  return std::ranges::none_of(results_of(forward.instructions()[k]), [&](PlacedId id) {
    return forward.depends_on_parameters(id) || forward.depends_on_draws(id);
  });
}

class PolicyProblem {
 public:
  PolicyProblem(const ForwardPass& forward, RecomputePolicy policy)
      : forward_(forward), policy_(policy), problem_(forward) {}

  CutProblem make() {
    for (size_t k = 0; k < forward_.instructions().size(); ++k) {
      if (!forward_.is_forward(k) || forward_.is_view(k)) continue;
      const bool conservative = policy_ == RecomputePolicy::kMinCut || k >= forward_.tail();
      problem_.forbidden[k] = never_twice(forward_, k) ||
                              (conservative && forbidden_by_mincut(k)) ||
                              (policy_ == RecomputePolicy::kSac && forward_.is_attention(k) &&
                               forward_.makes_attention_output(k));
      if (conservative) charge_by_distance(k);
    }
    if (policy_ != RecomputePolicy::kMinCut) {
      for (PlacedId id : forward_.layer_inputs()) {
        problem_.forbidden[static_cast<size_t>(forward_.producer(id))] = true;
      }
      if (forward_.layer_inputs().empty()) charge_everything();
    }
    return std::move(problem_);
  }

 private:
  bool forbidden_by_mincut(size_t k) const {
    const ir::Node* node = forward_.node(k);
    if (node == nullptr) {
      return is_collective(std::get<Move>(forward_.instructions()[k]).kind);
    }
    if (!is_fusible(*node) || forward_.is_attention(k)) return true;
    return is_strong_reduction(k) || is_materialised(k);
  }

  bool is_strong_reduction(size_t k) const {
    int64_t in = 0;
    int64_t out = 0;
    for (PlacedId id : operands_of(forward_.instructions()[k])) in += forward_.bytes(id);
    for (PlacedId id : results_of(forward_.instructions()[k])) out += forward_.bytes(id);
    return out * 4 < in;
  }

  // Whether a backward instruction that fuses nothing reads an activation, or a view of it: then it
  // must be written to memory in any case.
  bool is_materialised(size_t k) const {
    std::vector<PlacedId> pending = results_of(forward_.instructions()[k]);
    while (!pending.empty()) {
      const PlacedId id = pending.back();
      pending.pop_back();
      if (!forward_.is_activation(id)) continue;
      for (size_t reader : forward_.readers(id)) {
        if (forward_.is_view(reader)) {
          for (PlacedId view : results_of(forward_.instructions()[reader])) pending.push_back(view);
          continue;
        }
        const ir::Node* node = forward_.node(reader);
        if (!forward_.is_forward(reader) && (node == nullptr || !is_fusible(*node))) return true;
      }
    }
    return false;
  }

  // Of equals, keep what is nearer to its use.
  void charge_by_distance(size_t k) {
    constexpr double kPerInstruction = 1.1;
    constexpr int kMost = 100;
    const double factor = std::pow(kPerInstruction, std::min(forward_.distance(k), kMost));
    for (PlacedId id : results_of(forward_.instructions()[k])) {
      int64_t& keep = problem_.keep[id.index()];
      keep = std::llround(static_cast<double>(keep) * factor);
    }
  }

  // Without points at which to begin anew, free recomputation would execute the whole network again
  // at the turning point and hold all of it. Then what is executed again is charged.
  void charge_everything() {
    for (size_t k = 0; k < problem_.execute_again.size(); ++k) {
      if (!forward_.is_forward(k) || forward_.is_view(k)) continue;
      for (PlacedId id : results_of(forward_.instructions()[k])) {
        problem_.execute_again[k] += forward_.bytes(id) / 8 + 1;
      }
    }
  }

  const ForwardPass& forward_;
  RecomputePolicy policy_;
  CutProblem problem_;
};

}  // namespace

std::vector<bool> choose(const ForwardPass& forward, RecomputePolicy policy) {
  if (policy == RecomputePolicy::kNone) {
    return std::vector<bool>(forward.instructions().size(), false);
  }
  return solve(forward, PolicyProblem(forward, policy).make());
}

CutProblem priced_problem(const ForwardPass& forward) {
  CutProblem problem(forward);
  for (size_t k = 0; k < problem.forbidden.size(); ++k) {
    problem.forbidden[k] = forward.is_forward(k) && !forward.is_view(k) && never_twice(forward, k);
  }
  for (PlacedId id : forward.layer_inputs()) {
    problem.forbidden[static_cast<size_t>(forward.producer(id))] = true;
  }
  return problem;
}

RecomputePlan describe_plan(const ForwardPass& forward, std::vector<bool> recomputed) {
  RecomputePlan plan{.recomputed = std::move(recomputed), .kept = {}};
  plan.kept = kept_values(forward, plan.recomputed);
  for (PlacedId id : plan.kept) plan.kept_bytes += forward.bytes(id);
  return plan;
}

void require_loss(const SpmdProgram& program) {
  if (program.plan->roles.loss) return;
  throw Error("there is no loss, so forward and backward cannot be told apart")
      .help("name the loss with --loss OUTPUT, or keep everything with --recompute none");
}

RecomputePlan plan_recompute(const SpmdProgram& program, RecomputePolicy policy) {
  require_loss(program);
  const ForwardPass forward(program);
  return describe_plan(forward, choose(forward, policy));
}

}  // namespace autosp::transforms
