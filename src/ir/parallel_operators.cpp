#include "ir/parallel_operators.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "ir/graph.h"

namespace autosp::ir {

bool moves_data_between_ranks(std::string_view domain, std::string_view op) {
  if (domain.empty()) return op == "DistCollective";  // ONNX's own operators compute
  std::string letters;                                // all_reduce, AllReduce and ALLREDUCE are one
  for (const unsigned char c : op) {
    if (std::isalpha(c) != 0) letters += static_cast<char>(std::tolower(c));
  }
  constexpr std::array kAnywhere = {"allreduce",     "allgather",      "alltoall",
                                    "reducescatter", "distcollective", "megatron"};
  const bool collective = std::ranges::any_of(
      kAnywhere, [&](const char* part) { return letters.find(part) != std::string::npos; });
  if (collective || letters.starts_with("nccl")) return true;
  return domain == kMicrosoftDomain &&
         (op == "Send" || op == "Recv" || letters.starts_with("distributed"));
}

Error already_parallel(const std::string& node, const std::string& op) {
  Error error("the model is parallel already: node '{}' ({}) moves data between ranks", node, op);
  error.note(
      "tensor, pipeline and expert parallelism divide the model itself, by groups of ranks that "
      "its "
      "graph does not name");
  return error.help(
      "export the whole model, without parallelism of its own; --sp and --dp divide its step");
}

}  // namespace autosp::ir
