// What a run checks before it begins and records of each step, on whatever device.
#pragma once

#include <map>
#include <string>

#include "executor/execute.h"

namespace autosp::executor {

double seconds_since(Clock::time_point begin);

// Throws Error when a feed is missing or of another type than its graph input.
void check_feeds(const ir::Graph& graph, const std::map<std::string, ir::Type>& feeds);
std::map<std::string, ir::Type> types_of(const Arrays& arrays);

// Bytes that member `rank` sends to others (see CollectiveRecord).
int64_t bytes_sent(const ir::Graph& graph, const ir::Node& node, int rank);

// Adds to an error where it happened.
Error in_step(Error error, const ir::Graph& graph, const ir::Node& node, int rank);

}  // namespace autosp::executor
