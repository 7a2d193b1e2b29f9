#include "executor/kernel_table.h"

#include <algorithm>

#include "executor/device.h"
#include "executor/kernels/rows.h"

namespace autosp::executor {

BoundKernel KernelTable::find(const ir::Graph& graph, const ir::Node& node, int workers) const {
  for (const KernelRow& row : rows_) {
    if (row.op != node.op || row.domain != node.domain) continue;
    if (row.accepts != nullptr && !row.accepts(graph, node)) continue;
    const int64_t workspace = row.workspace != nullptr ? row.workspace(graph, node, workers) : 0;
    BoundKernel kernel{row.function, nullptr, workspace, row.aliasing};
    if (row.make != nullptr) kernel.made = row.make(*backend_, graph, node);
    if (kernel) return kernel;
  }
  if (host_ != nullptr) {
    BoundKernel kernel = host_->find(graph, node, workers);
    kernel.on_host = true;
    return kernel;
  }
  return {nullptr, reference::find_kernel(node.domain, node.op), 0,
          reference::aliasing_of(node.domain, node.op)};
}

const KernelRow* KernelTable::row_of(std::string_view domain, std::string_view op) const {
  const auto found = std::ranges::find_if(
      rows_, [&](const KernelRow& row) { return row.domain == domain && row.op == op; });
  return found == rows_.end() ? nullptr : &*found;
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
  return {backend.name(), std::move(rows), &cpu_kernels(), &backend};
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
