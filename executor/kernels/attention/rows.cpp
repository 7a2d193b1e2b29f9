// The rows of the kernel table.
#include "executor/kernels/rows.h"

#include "executor/kernels/attention/schedule.h"

namespace autosp::executor {

namespace {

using attention::best_functions;

constexpr KernelRow kRows[] = {
    {ir::kAutospDomain, "Attention", attention::accepts,
     [](const KernelCall& call) { attention::forward(call, best_functions()); },
     [](const ir::Graph& graph, const ir::Node& node, int workers) {
       return attention::forward_workspace(graph, node, workers, best_functions());
     }},
    {ir::kAutospDomain, "AttentionGrad", attention::accepts,
     [](const KernelCall& call) { attention::backward(call, best_functions()); },
     [](const ir::Graph& graph, const ir::Node& node, int workers) {
       return attention::backward_workspace(graph, node, workers, best_functions());
     }},
};

}  // namespace

std::span<const KernelRow> attention_rows() { return kRows; }

}  // namespace autosp::executor
