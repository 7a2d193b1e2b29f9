// Which function computes a node: one table per device.
//
// A row says which operator it is for, which nodes it takes (element types, layouts), and how much
// scratch memory it needs. Rows are tried in order; the reference kernels stand behind all of them.
#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "executor/communicator.h"
#include "ir/graph.h"
#include "reference/kernels.h"

namespace autosp::executor {

class Backend;
class Device;
class Workers;
enum class StreamId : uint8_t;

struct KernelCall {
  reference::Call call;
  std::byte* workspace = nullptr;        // as many bytes as the row asked for, 64-byte aligned
  Communicator* communicator = nullptr;  // never null
  Workers* workers = nullptr;            // never null; as many as the row was told
  // Of a device other than the CPU: operands and results lie in its memory, and the function queues
  // what is to be done on the stream. Constants are read from the graph.
  Device* device = nullptr;
  StreamId stream{};
  const ir::Graph* graph = nullptr;
};

using KernelFunction = void (*)(const KernelCall&);

struct KernelRow {
  std::string_view domain;
  std::string_view op;
  // Null: every node of the operator.
  bool (*accepts)(const ir::Graph&, const ir::Node&) = nullptr;
  KernelFunction function = nullptr;
  // Bytes of scratch memory for a run by so many workers; null: none.
  int64_t (*workspace)(const ir::Graph&, const ir::Node&, int workers) = nullptr;
  reference::Aliasing aliasing = reference::Aliasing::kNone;
  // Of kernels that are generated, in the place of `function`: makes what runs one node. Empty
  // where that cannot be made; the row then does not take the node.
  std::function<void(const KernelCall&)> (*make)(const Backend&, const ir::Graph&,
                                                 const ir::Node&) = nullptr;
};

// What a program runs for a node.
struct BoundKernel {
  KernelFunction function = nullptr;  // null: one of the others
  reference::Kernel reference = nullptr;
  int64_t workspace_bytes = 0;
  reference::Aliasing aliasing = reference::Aliasing::kNone;
  bool on_host = false;                         // of a device's table: this is a kernel of the CPU
  std::function<void(const KernelCall&)> made;  // by KernelRow::make
  explicit operator bool() const { return function != nullptr || reference != nullptr || made; }
  void operator()(const KernelCall& call) const {
    made ? made(call) : function != nullptr ? function(call) : reference(call.call);
  }
};

class KernelTable {
 public:
  // `host`: whose kernels stand behind these rows; null: the reference kernels. `backend`: what
  // kernels are generated for; null where no row does.
  KernelTable(std::string_view device, std::vector<KernelRow> rows,
              const KernelTable* host = nullptr, const Backend* backend = nullptr)
      : device_(device), rows_(std::move(rows)), host_(host), backend_(backend) {}

  std::string_view device() const { return device_; }
  const std::vector<KernelRow>& rows() const { return rows_; }
  // The first row of an operator; null: none.
  const KernelRow* row_of(std::string_view domain, std::string_view op) const;

  // The first row that accepts the node, else what stands behind the rows, else nothing.
  BoundKernel find(const ir::Graph& graph, const ir::Node& node, int workers = 1) const;

 private:
  std::string_view device_;
  std::vector<KernelRow> rows_;
  const KernelTable* host_;
  const Backend* backend_;
};

// OpenBLAS and this project's CPU kernels.
const KernelTable& cpu_kernels();
// A device's kernels and the collectives, and the CPU's for what it has none for.
KernelTable device_kernels(const Backend& backend);
// The reference kernels and the collectives, to compare others with.
const KernelTable& reference_kernels();

}  // namespace autosp::executor
