// What a run checks before it begins and records of each step, on whatever device.
#pragma once

#include <set>
#include <string>

#include "executor/execute.h"

namespace autosp::executor {

double seconds_since(Clock::time_point begin);

// Throws Error when a feed is missing or of another type than its graph input. Inputs named in
// `kept` are not fed.
void check_feeds(const ir::Graph& graph, const Arrays& feeds,
                 const std::set<std::string>& kept = {});

// Bytes that member `rank` sends to others (see CollectiveRecord).
int64_t bytes_sent(const ir::Graph& graph, const ir::Node& node, int rank);

// Adds to an error where it happened.
Error in_step(Error error, const ir::Graph& graph, const ir::Node& node, int rank);

}  // namespace autosp::executor
