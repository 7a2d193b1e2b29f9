#include "report/timeline.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace autosp::cli {

namespace {

constexpr size_t kMostSegments = 3000;  // that are shown one by one
constexpr double kMostColumns = 1000;   // of a rank, where there are more
constexpr double kAllColumns = 2400;    // of all ranks together
constexpr double kFewestColumns = 40;

using Trace = std::vector<std::vector<NodeTime>>;

// When the last member of each collective came to it, by node and first rank of its group.
using Arrivals = std::map<std::pair<std::string, int64_t>, double>;

Arrivals find_arrivals(const Trace& ranks) {
  Arrivals arrivals;
  for (const auto& nodes : ranks) {
    for (const NodeTime& node : nodes) {
      if (!node.collective()) continue;
      double& last = arrivals[{node.name, node.group.front()}];
      last = std::max(last, node.begin);
    }
  }
  return arrivals;
}

struct Interval {
  double begin = 0;
  double end = 0;
};

// The times at which a rank computes, ascending and apart.
std::vector<Interval> computing(const std::vector<NodeTime>& nodes) {
  std::vector<Interval> intervals;
  for (const NodeTime& node : nodes) {
    if (!node.collective()) intervals.push_back({node.begin, node.end});
  }
  std::ranges::sort(intervals, {}, &Interval::begin);
  std::vector<Interval> apart;
  for (const Interval& next : intervals) {
    if (apart.empty() || next.begin > apart.back().end) {
      apart.push_back(next);
    } else {
      apart.back().end = std::max(apart.back().end, next.end);
    }
  }
  return apart;
}

double length(const std::vector<Interval>& intervals) {
  double sum = 0;
  for (const Interval& interval : intervals) sum += interval.end - interval.begin;
  return sum;
}

// What of an interval none of the others covers.
double uncovered(const Interval& interval, const std::vector<Interval>& others) {
  double rest = interval.end - interval.begin;
  auto other = std::ranges::lower_bound(others, interval.begin, {}, &Interval::end);
  for (; other != others.end() && other->begin < interval.end; ++other) {
    rest -= std::min(other->end, interval.end) - std::max(other->begin, interval.begin);
  }
  return std::max(rest, 0.0);
}

std::string kind_of(const NodeTime& node) {
  return node.phase == "forward" || node.phase == "recompute" ? node.phase : "backward";
}

// One rank's nodes as segments, a collective as its waiting and its transfer.
class RankReader {
 public:
  RankReader(int64_t rank, const std::vector<NodeTime>& nodes, const Arrivals& arrivals,
             double epoch)
      : rank_(rank), nodes_(nodes), arrivals_(arrivals), epoch_(epoch), busy_(computing(nodes)) {}

  RankTimes read(std::vector<ReportSegment>& segments) {
    double begin = std::numeric_limits<double>::infinity();
    double end = 0;
    for (const NodeTime& node : nodes_) {
      begin = std::min(begin, node.begin);
      end = std::max(end, node.end);
      if (node.collective()) {
        add_collective(node, segments);
      } else {
        add(node, kind_of(node), node.begin, node.end, segments);
      }
    }
    times_.compute = length(busy_);
    times_.step = nodes_.empty() ? 0 : end - begin;
    return times_;
  }

 private:
  void add_collective(const NodeTime& node, std::vector<ReportSegment>& segments) {
    const double arrival =
        std::clamp(arrivals_.at({node.name, node.group.front()}), node.begin, node.end);
    times_.communication += node.end - node.begin;
    times_.waiting += arrival - node.begin;
    times_.exposed += uncovered({node.begin, node.end}, busy_);
    if (arrival > node.begin) add(node, "waiting", node.begin, arrival, segments);
    add(node, "transfer", arrival, node.end, segments);
  }

  void add(const NodeTime& node, const std::string& kind, double begin, double end,
           std::vector<ReportSegment>& segments) const {
    segments.push_back({.rank = rank_,
                        .kind = kind,
                        .start = begin - epoch_,
                        .duration = end - begin,
                        .exposed_seconds = node.collective() ? uncovered({begin, end}, busy_) : 0,
                        .nodes = 1,
                        .label = node.name});
  }

  int64_t rank_;
  const std::vector<NodeTime>& nodes_;
  const Arrivals& arrivals_;
  double epoch_;
  std::vector<Interval> busy_;
  RankTimes times_;
};

constexpr std::array<const char*, 5> kKinds = {"forward", "backward", "recompute", "waiting",
                                               "transfer"};
constexpr size_t kComputing = 3;  // of them, the first

// What happens in one column of a rank's time line.
struct Column {
  std::array<double, kKinds.size()> seconds{};
  std::array<int64_t, kKinds.size()> nodes{};
  std::array<std::string, kKinds.size()> labels;  // of the first node
  double exposed = 0;
};

class ColumnReader {
 public:
  ColumnReader(const std::vector<ReportSegment>& segments, double width, size_t count)
      : segments_(segments), width_(width), count_(count) {}

  std::vector<Column> read(int64_t rank) const {
    std::vector<Column> columns(count_);
    for (const ReportSegment& segment : segments_) {
      if (segment.rank == rank) add(segment, columns);
    }
    return columns;
  }

 private:
  size_t column_at(double time) const {
    return std::min(count_ - 1, static_cast<size_t>(time / width_));
  }

  void add(const ReportSegment& segment, std::vector<Column>& columns) const {
    const auto kind = static_cast<size_t>(std::ranges::find(kKinds, segment.kind) - kKinds.begin());
    const double end = segment.start + segment.duration;
    for (size_t k = column_at(segment.start); k <= column_at(end); ++k) {
      const double begin = std::max(segment.start, static_cast<double>(k) * width_);
      const double within = std::min(end, static_cast<double>(k + 1) * width_) - begin;
      if (within <= 0) continue;
      Column& column = columns[k];
      column.seconds[kind] += within;
      if (segment.exposed_seconds > 0) column.exposed += within;
      ++column.nodes[kind];
      if (column.labels[kind].empty()) column.labels[kind] = segment.label;
    }
  }

  const std::vector<ReportSegment>& segments_;
  double width_;
  size_t count_;
};

// Columns as segments: of computation and of communication each what took most, as long as all of
// it took; neighbours that are full are one.
class ColumnMerger {
 public:
  ColumnMerger(int64_t rank, double width, std::vector<ReportSegment>& segments)
      : rank_(rank), width_(width), segments_(segments) {}

  void add(const std::vector<Column>& columns, size_t first_kind, size_t last_kind) {
    ReportSegment open{.duration = 0};
    for (size_t k = 0; k < columns.size(); ++k) {
      const ReportSegment next = segment_of(columns[k], k, first_kind, last_kind);
      const bool joined = open.duration > 0 && next.kind == open.kind &&
                          next.start - (open.start + open.duration) < kGap * width_;
      if (joined) {
        open.duration = next.start + next.duration - open.start;
        open.exposed_seconds += next.exposed_seconds;
        open.nodes += next.nodes;
        continue;
      }
      close(open);
      open = next;
    }
    close(open);
  }

 private:
  static constexpr double kGap = 0.05;  // of a column: nobody would see it

  void close(const ReportSegment& segment) {
    if (segment.duration > kGap * width_) segments_.push_back(segment);
  }

  ReportSegment segment_of(const Column& column, size_t at, size_t first, size_t last) const {
    double all = 0;
    size_t most = first;
    int64_t nodes = 0;
    for (size_t kind = first; kind < last; ++kind) {
      all += column.seconds[kind];
      nodes += column.nodes[kind];
      if (column.seconds[kind] > column.seconds[most]) most = kind;
    }
    return {.rank = rank_,
            .kind = kKinds[most],
            .start = static_cast<double>(at) * width_,
            .duration = std::min(all, width_),
            .exposed_seconds = first < kComputing ? 0 : column.exposed,
            .nodes = nodes,
            .label = column.labels[most]};
  }

  int64_t rank_;
  double width_;
  std::vector<ReportSegment>& segments_;
};

std::vector<ReportSegment> merged(const std::vector<ReportSegment>& segments, size_t ranks,
                                  double seconds) {
  const auto count = static_cast<size_t>(
      std::clamp(kAllColumns / static_cast<double>(ranks), kFewestColumns, kMostColumns));
  const double width = seconds / static_cast<double>(count);
  const ColumnReader reader(segments, width, count);
  std::vector<ReportSegment> result;
  for (int64_t rank = 0; rank < static_cast<int64_t>(ranks); ++rank) {
    const std::vector<Column> columns = reader.read(rank);
    ColumnMerger merger(rank, width, result);
    merger.add(columns, 0, kComputing);
    merger.add(columns, kComputing, kKinds.size());
  }
  return result;
}

}  // namespace

StepTimes read_step(const Trace& ranks) {
  StepTimes result;
  double epoch = std::numeric_limits<double>::infinity();
  double end = 0;
  for (const auto& nodes : ranks) {
    for (const NodeTime& node : nodes) {
      epoch = std::min(epoch, node.begin);
      end = std::max(end, node.end);
      if (!node.collective()) continue;
      result.collectives[node.name] += (node.end - node.begin) / static_cast<double>(ranks.size());
    }
  }
  if (!std::isfinite(epoch)) epoch = end;
  result.timeline.seconds = end - epoch;
  const Arrivals arrivals = find_arrivals(ranks);
  std::vector<ReportSegment>& segments = result.timeline.segments;
  for (size_t k = 0; k < ranks.size(); ++k) {
    RankReader reader(static_cast<int64_t>(k), ranks[k], arrivals, epoch);
    result.ranks.push_back(reader.read(segments));
  }
  if (segments.size() > kMostSegments) {
    segments = merged(segments, ranks.size(), result.timeline.seconds);
    result.timeline.merged = true;
  }
  return result;
}

}  // namespace autosp::cli
