// A rank graph made ready to run: the order, the kernels, and where every value lies.
//
// Memory is planned before the run. Results live in one arena at computed offsets; views (Reshape,
// Squeeze, ...) share their operand's bytes, and elementwise operators write over an operand that
// nothing reads afterwards. Inputs, constants and external data stay outside, where they are, but
// for inputs that are kept from run to run.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "executor/kernel_table.h"
#include "ir/graph.h"

namespace autosp::executor {

struct CompileOptions {
  const KernelTable* kernels = nullptr;  // null: cpu_kernels()
  bool share_memory = true;  // false: every result has bytes of its own for the whole run
  int workers = 1;           // threads of the rank that runs it
  bool fuse = false;         // elementwise operators that feed each other run as one step
  bool overlap = false;      // collectives run beside computation, which takes more memory
};

// All in bytes.
struct MemoryPlan {
  int64_t arena = 0;      // what a run allocates for results, scratch memory and what is kept
  int64_t working = 0;    // of these: what this program works in, without what is kept apart
  int64_t live_peak = 0;  // the most that is live at once: the least an arena could be
  std::string peak_node;  // where that is
  int64_t inputs = 0;     // that are not kept
  int64_t constants = 0;
  int64_t external = 0;  // mapped from files
};

// Where a value lies; inputs that are kept lie in the arena.
enum class Storage : uint8_t { kInput, kConstant, kExternal, kArena };
struct Place {
  Storage storage = Storage::kArena;
  ValueId root;     // of the others: the input, constant or external value whose bytes these are
  int buffer = -1;  // of the arena
};

// A run of arena bytes, and the steps (node positions) between which it is live, both inclusive.
struct ArenaBuffer {
  enum class Placing : uint8_t {
    kFree,   // by assign_offsets()
    kFixed,  // where another program has put it
    kApart,  // of a kept value, behind all that programs work in
  };
  int64_t size = 0;
  int first = 0;
  int last = 0;
  int64_t offset = 0;
  Placing placing = Placing::kFree;
};

// Names under which outputs are kept, by output.
using KeptOutputs = std::map<std::string, std::string>;

class Program {
 public:
  const ir::Graph& graph() const { return *graph_; }
  const MemoryPlan& memory() const { return memory_; }
  int workers() const { return workers_; }  // see CompileOptions
  const Place& place(ValueId id) const { return places_[id.index()]; }
  const std::vector<ArenaBuffer>& buffers() const { return buffers_; }
  const BoundKernel& kernel(size_t step) const { return kernels_[step]; }
  // True when the node at this step moves no bytes: its result is a view.
  bool is_view(size_t step) const { return is_view_[step]; }
  // The buffer of the step's scratch memory, or -1.
  int workspace(size_t step) const { return workspaces_[step]; }
  // Whether collectives run beside the other steps, one after the other.
  bool overlaps() const { return !ended_before_.empty(); }
  // How many collectives must have ended before the step.
  int ended_before(size_t step) const { return overlaps() ? ended_before_[step] : 0; }
  const KeptOutputs& kept_outputs() const { return kept_outputs_; }
  // Names of kept values that a run leaves undefined.
  const std::set<std::string>& gone_after() const { return gone_after_; }

 private:
  friend class Compiler;
  std::shared_ptr<const ir::Graph> graph_;
  MemoryPlan memory_;
  int workers_ = 1;
  std::vector<Place> places_;  // per value
  std::vector<ArenaBuffer> buffers_;
  std::vector<BoundKernel> kernels_;  // per node
  std::vector<bool> is_view_;
  std::vector<int> workspaces_;
  std::vector<int> ended_before_;  // by step; empty: collectives are steps like others
  KeptOutputs kept_outputs_;
  std::set<std::string> gone_after_;
};

// Throws Error, naming node and operator, when there is no kernel for a node.
Program compile(std::shared_ptr<const ir::Graph> graph, const CompileOptions& options = {});

// A graph whose program runs by turns with others, and the values that stay from run to run: inputs
// that are kept, and outputs that become their next values.
struct Turn {
  std::shared_ptr<const ir::Graph> graph;
  std::set<std::string> kept;  // inputs
  KeptOutputs keeps;
};

// The turns' programs, of one arena, which holds what is kept besides. A new value is written over
// the old one where no kernel reads that any more. What one turn leaves for those after it alone,
// as a step its gradients for the update, lies among the results of these meanwhile and gives its
// place to others afterwards. Turns run in this order; some of them may run again before the next.
// Throws as compile(); InternalError where the turns have not one type of a kept value.
std::vector<Program> compile_turns(const std::vector<Turn>& turns,
                                   const CompileOptions& options = {});

// Gives every free buffer an offset, a multiple of 64, such that buffers live at the same time do
// not overlap; fixed ones stay where they are. Returns the bytes needed.
int64_t assign_offsets(std::vector<ArenaBuffer>& buffers);

}  // namespace autosp::executor
