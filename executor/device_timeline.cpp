#include "executor/device_timeline.h"

#include <algorithm>

#include "executor/step_records.h"
#include "ir/operator_traits.h"

namespace autosp::executor {

DeviceTimeline::DeviceTimeline(Device& device, const ir::Graph& graph, int rank,
                               const ExecuteOptions& options)
    : device_(device), graph_(graph), rank_(rank), epoch_(options.epoch), events_(options.events) {
  if (events_ != nullptr) origin_ = device_.make_event();
}

void DeviceTimeline::begin(bool replayed) {
  collectives_.clear();
  if (!replayed) queued_.clear();
  step_begin_ = Clock::now();
  if (events_ == nullptr) return;
  events_->clear();
  device_.record(StreamId::kCompute, *origin_);
}

std::unique_ptr<DeviceEvent> DeviceTimeline::recorded(StreamId stream) {
  if (events_ == nullptr) return nullptr;
  auto event = device_.make_event();
  device_.record(stream, *event);
  return event;
}

void DeviceTimeline::keep(Queued node) {
  if (node.begin || ir::is_collective(graph_.nodes()[node.node])) {
    queued_.push_back(std::move(node));
  }
}

double DeviceTimeline::since_epoch(Clock::time_point time) const {
  return std::chrono::duration<double>(time - epoch_).count();
}

void DeviceTimeline::add_on_host(const ir::Node& node, Clock::time_point begin) {
  const double duration = seconds_since(begin);
  const bool collective = ir::is_collective(node);
  const int64_t bytes = collective ? bytes_sent(graph_, node, rank_) : 0;
  if (collective) collectives_.push_back({node.name, node.op, bytes, duration});
  if (events_ == nullptr) return;
  events_->push_back({node.name, node.op + " (host)", rank_, since_epoch(begin), duration, bytes});
}

std::vector<CollectiveRecord> DeviceTimeline::read() {
  for (const Queued& queued : queued_) {
    const ir::Node& node = graph_.nodes()[queued.node];
    const bool collective = ir::is_collective(node);
    const int64_t bytes = collective ? bytes_sent(graph_, node, rank_) : 0;
    double duration = 0;
    if (queued.begin) {
      duration = device_.seconds_between(*queued.begin, *queued.end);
      const double start =
          since_epoch(step_begin_) + device_.seconds_between(*origin_, *queued.begin);
      events_->push_back({node.name, node.op, rank_, start, duration, bytes});
    }
    if (collective) collectives_.push_back({node.name, node.op, bytes, duration});
  }
  if (events_ != nullptr) std::ranges::sort(*events_, {}, &TraceEvent::start);
  return collectives_;
}

}  // namespace autosp::executor
