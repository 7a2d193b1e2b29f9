// An AllToAll of slices along one dimension.
#pragma once

#include <string>
#include <vector>

#include "ir/builder.h"
#include "shard/layout.h"

namespace autosp::transforms {

// By member of the group: what of x goes to it, and where in the result lies what comes from it.
// What is received fills the result; empty intervals are nothing. `node` names it.
ValueId exchange_along(size_t dim, ValueId x, const std::vector<shard::Interval>& sent,
                       const std::vector<shard::Interval>& received,
                       const std::vector<int64_t>& group, const std::string& node,
                       ir::Builder& build);

}  // namespace autosp::transforms
