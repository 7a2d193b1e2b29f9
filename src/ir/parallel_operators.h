// Operators by which other tools' graphs move data between ranks.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace autosp::ir {

// Whether the operator, of any runtime or framework, is a collective, sends or receives, or stands
// for a product and its collective in one: by domain and name, "com.microsoft::NcclAllReduce",
// "_c10d_functional::all_gather_into_tensor".
bool moves_data_between_ranks(std::string_view domain, std::string_view op);

// Sequence parallelism is of the graph of a whole model. `node` is described as messages do it.
Error already_parallel(const std::string& node, const std::string& op);

}  // namespace autosp::ir
