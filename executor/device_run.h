// The runs of one program on a device.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "executor/device_feeds.h"
#include "executor/device_memory.h"
#include "executor/device_timeline.h"
#include "executor/execute.h"
#include "executor/memory.h"
#include "executor/program.h"
#include "executor/stream_plan.h"
#include "executor/workers.h"

namespace autosp::executor {

// What the programs of a rank share.
struct DeviceSessionParts {
  Communicator& communicator;  // of host memory
  const ExecuteOptions options;
  Device& device;
  Communicator* exchange;  // of device memory, or null
  DeviceMemory memory;     // the arena first
  Workers workers;
  MappedFiles files;
  // Programs that have not run yet. Until they have, libraries may still move memory of their own,
  // which a captured step would go on using.
  size_t yet_to_run;
};

// The first run is queued step by step; later ones are captured once and replayed, where that can
// be (may_be_captured). Whatever differs from run to run lies in the memory before the run begins:
// feeds, and what programs have left for each other.
class DeviceRun {
 public:
  DeviceRun(const Program& program, DeviceSessionParts& shared);

  // Once the memory is there: what is the same in every run.
  void upload_constants();

  // The result has those outputs that are wanted.
  RankResult run(const Arrays& feeds, const std::function<bool(const ir::Output&)>& wanted);

 private:
  // What kernels of the device read.
  void place_sources();
  void make_events();
  void set_inputs(const Arrays& feeds);
  const void* host_address(ValueId source);

  // Seconds.
  double run_step();
  void capture_step();
  bool all_ranks(bool own);
  bool may_be_captured() const;
  bool meets_threads(size_t k) const;
  void check_faults();

  void queue_step();
  void run_node(size_t k, StreamId stream);
  void run_there(size_t k, StreamId stream);
  void run_on_host(size_t k);
  const void* on_host(ValueId id, std::vector<ir::Tensor>& staged);
  std::byte* arena_address(int buffer) const;
  std::byte* device_address(ValueId id) const;

  void tell_notices();
  void collect_outputs(const std::function<bool(const ir::Output&)>& wanted);
  ir::Tensor source_on_host(ValueId id);
  ir::Tensor downloaded(ValueId id);

  const Program& program_;
  const ir::Graph& graph_;
  DeviceSessionParts& shared_;
  Device& device_;
  Communicator* exchange_;  // of device memory, or null
  DeviceMemory& memory_;
  DeviceFeeds feeds_;  // of the last run
  DeviceTimeline timeline_;
  std::vector<StreamStep> steps_;
  std::map<ValueId, int64_t> offsets_;              // in the memory, of what came from the host
  std::vector<std::unique_ptr<DeviceEvent>> done_;  // by step, where awaited
  std::unique_ptr<DeviceEvent> last_exchange_;
  bool has_run_ = false;
  bool has_tried_to_capture_ = false;
  std::unique_ptr<CapturedStep> captured_;
  std::set<std::string> on_host_;             // operators
  std::vector<reference::Operand> operands_;  // of the step that runs
  std::vector<reference::Result> results_;
  RankResult result_;
};

}  // namespace autosp::executor
