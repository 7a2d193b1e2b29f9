// When the nodes of a step ran on a device and how long its collectives took: by events on its
// streams, and by the host's clock for what ran there.
#pragma once

#include <memory>
#include <vector>

#include "executor/device.h"
#include "executor/execute.h"

namespace autosp::executor {

class DeviceTimeline {
 public:
  // `options.events`, where it is given, gets every node of a step; otherwise nothing is measured
  // on the device, and collectives there are listed as taking no time.
  DeviceTimeline(Device& device, const ir::Graph& graph, int rank, const ExecuteOptions& options);

  // A step begins now. One that is replayed has the nodes of the step that was queued last.
  void begin(bool replayed);
  // What has been queued since begin() does not run: it is queued once more.
  void forget() { queued_.clear(); }

  // Calls `queue`, which queues node `k` on the stream.
  template <typename Queue>
  void add(size_t k, StreamId stream, const Queue& queue) {
    Queued node{.node = k, .begin = recorded(stream), .end = nullptr};
    queue();
    node.end = recorded(stream);
    keep(std::move(node));
  }
  // The node has run on the host from `begin` until now.
  void add_on_host(const ir::Node& node, Clock::time_point begin);

  // Of the step, once the device has done it all.
  std::vector<CollectiveRecord> read();

 private:
  struct Queued {
    size_t node = 0;
    std::unique_ptr<DeviceEvent> begin;  // null: not measured
    std::unique_ptr<DeviceEvent> end;
  };
  std::unique_ptr<DeviceEvent> recorded(StreamId stream);
  void keep(Queued node);
  // Seconds from the trace's epoch.
  double since_epoch(Clock::time_point time) const;

  Device& device_;
  const ir::Graph& graph_;
  const int rank_;
  const Clock::time_point epoch_;
  std::vector<TraceEvent>* const events_;
  std::unique_ptr<DeviceEvent> origin_;  // of the step, when the host's clock says step_begin_
  Clock::time_point step_begin_;
  std::vector<Queued> queued_;
  std::vector<CollectiveRecord> collectives_;
};

}  // namespace autosp::executor
