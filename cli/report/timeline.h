// Where the time of one step went, from a trace of every rank.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "report/data.h"

namespace autosp::cli {

// One node's run on one rank.
struct NodeTime {
  std::string name;
  std::string phase;  // ir::Node::phase
  double begin = 0;   // seconds, on one clock for all ranks
  double end = 0;
  std::vector<int64_t> group;  // of a collective: its ranks; empty: a computation

  bool collective() const { return !group.empty(); }
};

struct RankTimes {
  double step = 0;
  double compute = 0;
  double communication = 0;
  double waiting = 0;  // in collectives that a member had yet to come to
  double exposed = 0;  // in collectives while the rank computed nothing
};

struct StepTimes {
  std::vector<RankTimes> ranks;
  std::map<std::string, double> collectives;  // seconds by node, on average over the ranks
  ReportTimeline timeline;
};

// `ranks` holds the nodes of each rank in order of execution. The time line has a few thousand
// segments at most: of longer ones, columns of equal width tell how much of them was computed and
// communicated.
StepTimes read_step(const std::vector<std::vector<NodeTime>>& ranks);

}  // namespace autosp::cli
