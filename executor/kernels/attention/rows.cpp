// The rows of the kernel table.
#include "executor/kernels/rows.h"

#include "executor/kernels/attention/schedule.h"

namespace autosp::executor {

namespace {

using attention::functions_for;

constexpr KernelRow kRows[] = {
    {ir::kAutospDomain, "Attention", attention::accepts,
     [](const KernelCall& call) { attention::forward(call, functions_for(call)); },
     [](const ir::Graph& graph, const ir::Node& node, int workers) {
       return attention::forward_workspace(graph, node, workers, functions_for(graph, node));
     }},
    {ir::kAutospDomain, "AttentionGrad", attention::accepts,
     [](const KernelCall& call) { attention::backward(call, functions_for(call)); },
     [](const ir::Graph& graph, const ir::Node& node, int workers) {
       return attention::backward_workspace(graph, node, workers, functions_for(graph, node));
     }},
};

}  // namespace

std::span<const KernelRow> attention_rows() { return kRows; }

}  // namespace autosp::executor
