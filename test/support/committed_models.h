// The training graphs under models/graphs.
#pragma once

#include <string>
#include <vector>

#include "ir/graph.h"

namespace autosp::test {

struct CommittedModel {
  std::string file;      // relative to models/graphs
  int64_t sequence = 0;  // that open dimensions are bound to; 0 when the graph has none
};

// Every committed graph, sorted; those with open dimensions once per given sequence length.
std::vector<CommittedModel> committed_models(const std::vector<int64_t>& sequences);

// An open batch is bound to 2.
ir::Graph import_committed(const CommittedModel& model);

// "llama_onnx_ad_0", for test names.
std::string identifier_of(const CommittedModel& model);

}  // namespace autosp::test
