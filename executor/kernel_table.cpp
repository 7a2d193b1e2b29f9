#include "executor/kernel_table.h"

#include "executor/device.h"
#include "executor/kernels/rows.h"

namespace autosp::executor {

BoundKernel KernelTable::find(const ir::Graph& graph, const ir::Node& node, int workers) const {
  for (const KernelRow& row : rows_) {
    if (row.op != node.op || row.domain != node.domain) continue;
    if (row.accepts != nullptr && !row.accepts(graph, node)) continue;
    const int64_t workspace = row.workspace != nullptr ? row.workspace(graph, node, workers) : 0;
    return {row.function, nullptr, workspace, row.aliasing};
  }
  if (host_ != nullptr) {
    BoundKernel kernel = host_->find(graph, node, workers);
    kernel.on_host = true;
    return kernel;
  }
  return {nullptr, reference::find_kernel(node.domain, node.op), 0,
          reference::aliasing_of(node.domain, node.op)};
}

namespace {

void append(std::vector<KernelRow>& rows, std::span<const KernelRow> more) {
  rows.insert(rows.end(), more.begin(), more.end());
}

}  // namespace

const KernelTable& cpu_kernels() {
  static const KernelTable table("CPU", [] {
    std::vector<KernelRow> rows;
    append(rows, collective_rows());
    append(rows, blas_rows());
    append(rows, elementwise_rows());
    append(rows, reduction_rows());
    append(rows, movement_rows());
    append(rows, attention_rows());
    append(rows, chain_rows());
    return rows;
  }());
  return table;
}

KernelTable device_kernels(const Backend& backend) {
  std::vector<KernelRow> rows;
  append(rows, collective_rows());
  append(rows, backend.rows());
  return {backend.name(), std::move(rows), &cpu_kernels()};
}

const KernelTable& reference_kernels() {
  static const KernelTable table("reference", [] {
    std::vector<KernelRow> rows;
    append(rows, collective_rows());
    return rows;
  }());
  return table;
}

}  // namespace autosp::executor
