#include "executor/stream_plan.h"

#include <algorithm>

#include "ir/operator_traits.h"

namespace autosp::executor {

namespace {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  bool overlaps(const Range& other) const { return begin < other.end && other.begin < end; }
};

// Bytes of the arena that a step touches.
struct Footprint {
  std::vector<Range> reads;
  std::vector<Range> writes;
};

bool overlap(const std::vector<Range>& a, const std::vector<Range>& b) {
  return std::ranges::any_of(a, [&](const Range& range) {
    return std::ranges::any_of(b, [&](const Range& other) { return range.overlaps(other); });
  });
}

bool conflict(const Footprint& a, const Footprint& b) {
  return overlap(a.writes, b.writes) || overlap(a.writes, b.reads) || overlap(a.reads, b.writes);
}

Footprint footprint(const Program& program, size_t step) {
  const ir::Node& node = program.graph().nodes()[step];
  Footprint result;
  const auto add = [&](std::vector<Range>& ranges, int buffer) {
    if (buffer < 0) return;
    const ArenaBuffer& b = program.buffers()[static_cast<size_t>(buffer)];
    ranges.push_back({b.offset, b.offset + b.size});
  };
  for (ValueId id : node.inputs) {
    if (id) add(result.reads, program.place(id).buffer);
  }
  for (ValueId id : node.outputs) {
    if (id) add(result.writes, program.place(id).buffer);
  }
  add(result.writes, program.workspace(step));
  return result;
}

class StreamPlanner {
 public:
  StreamPlanner(const Program& program, bool device_exchange)
      : program_(program), device_exchange_(device_exchange) {}

  std::vector<StreamStep> plan() {
    const size_t count = program_.graph().nodes().size();
    steps_.resize(count);
    footprints_.resize(count);
    for (size_t k = 0; k < count; ++k) {
      if (!program_.is_view(k)) place(k);
    }
    return std::move(steps_);
  }

 private:
  void place(size_t k) {
    StreamStep& step = steps_[k];
    const bool collective = ir::is_collective(program_.graph().nodes()[k]);
    step.runs = true;
    step.exchanges = collective && device_exchange_;
    step.on_host = program_.kernel(k).on_host || (collective && !device_exchange_);
    footprints_[k] = footprint(program_, k);
    Stream& own = step.exchanges ? exchange_ : compute_;
    Stream& other = step.exchanges ? compute_ : exchange_;
    // What it waited for before has been waited for by all that follow on its stream.
    for (size_t at = other.steps.size(); at > own.seen; --at) {
      const size_t candidate = other.steps[at - 1];
      if (!conflict(footprints_[k], footprints_[candidate])) continue;
      step.waits_for = static_cast<int>(candidate);
      steps_[candidate].awaited = true;
      own.seen = at;
      break;
    }
    own.steps.push_back(k);
  }

  struct Stream {
    std::vector<size_t> steps;  // in order
    size_t seen = 0;            // of the other stream's steps: so many are done by now
  };

  const Program& program_;
  const bool device_exchange_;
  std::vector<StreamStep> steps_;
  std::vector<Footprint> footprints_;
  Stream compute_;
  Stream exchange_;
};

}  // namespace

std::vector<StreamStep> plan_streams(const Program& program, bool device_exchange) {
  return StreamPlanner(program, device_exchange).plan();
}

}  // namespace autosp::executor
