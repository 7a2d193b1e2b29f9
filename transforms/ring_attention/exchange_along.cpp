#include "transforms/ring_attention/exchange_along.h"

namespace autosp::transforms {

using shard::Interval;

namespace {

// Boxes as attributes have them: an empty one has no extent at all.
struct Boxes {
  std::vector<int64_t> begin;
  std::vector<int64_t> extent;

  Boxes(size_t dim, const std::vector<Interval>& slices, const ir::Shape& shape) {
    for (const Interval& slice : slices) {
      const bool empty = slice.extent() == 0;
      for (size_t d = 0; d < shape.size(); ++d) {
        begin.push_back(d == dim && !empty ? slice.begin : 0);
        extent.push_back(empty ? 0 : d == dim ? slice.extent() : shape[d]);
      }
    }
  }
};

}  // namespace

ValueId exchange_along(size_t dim, ValueId x, const std::vector<Interval>& sent,
                       const std::vector<Interval>& received, const std::vector<int64_t>& group,
                       const std::string& node, ir::Builder& build) {
  ir::Type type = build.graph().type(x);
  type.shape[dim] = 0;
  for (const Interval& slice : received) type.shape[dim] += slice.extent();
  const Boxes send(dim, sent, type.shape);
  const Boxes receive(dim, received, type.shape);
  ir::Attributes attributes{{"group", group},
                            {"shape", type.shape},
                            {"send_begin", send.begin},
                            {"send_extent", send.extent},
                            {"recv_begin", receive.begin},
                            {"recv_extent", receive.extent}};
  return build.node("AllToAll", {x}, type, std::move(attributes), std::string(ir::kAutospDomain),
                    node);
}

}  // namespace autosp::transforms
