// The collectives of docs/collectives.md, handed to the communicator.
#include <algorithm>

#include "executor/kernels/rows.h"

namespace autosp::executor {

namespace {

struct Arguments {
  Collective collective;
  ConstBuffer x;
  Buffer y;
};

Arguments arguments_of(const KernelCall& call) {
  const ir::Node& node = call.call.node;
  Arguments result;
  const std::vector<int64_t> group = node.attributes.get_ints("group");
  result.collective = {
      node.name, node.op, {group.begin(), group.end()}, call.call.operands[0].dtype};
  const int rank = call.communicator->rank();
  if (std::ranges::find(group, rank) == group.end()) {
    throw Error("rank {} executes a collective of a group that it is not in", rank)
        .help("the rank graphs do not belong together: shard the model again");
  }
  if (std::ranges::any_of(group,
                          [&](int64_t r) { return r < 0 || r >= call.communicator->size(); })) {
    throw Error("the group has ranks outside the {} that run", call.communicator->size())
        .help("run with as many ranks as the model was sharded for");
  }
  result.x = {call.call.operands[0].data, *call.call.operands[0].shape};
  result.y = {call.call.results[0].data, *call.call.results[0].shape};
  return result;
}

void all_reduce(const KernelCall& call) {
  const Arguments a = arguments_of(call);
  call.communicator->all_reduce(a.collective, a.x, a.y);
}

size_t axis_of(const KernelCall& call) {
  return ir::normalize_axis(call.call.node.attributes.get_int("axis", 0),
                            call.call.operands[0].shape->size());
}

void all_gather(const KernelCall& call) {
  const Arguments a = arguments_of(call);
  call.communicator->all_gather(a.collective, a.x, a.y, axis_of(call),
                                call.call.node.attributes.get_ints("sizes"));
}

void reduce_scatter(const KernelCall& call) {
  const Arguments a = arguments_of(call);
  call.communicator->reduce_scatter(a.collective, a.x, a.y, axis_of(call),
                                    call.call.node.attributes.get_ints("sizes"));
}

// Boxes of one side, flattened in the attributes as members x rank.
std::vector<Box> boxes_of(const KernelCall& call, const std::string& side, size_t members,
                          size_t rank) {
  const std::vector<int64_t> begin = call.call.node.attributes.get_ints(side + "_begin");
  const std::vector<int64_t> extent = call.call.node.attributes.get_ints(side + "_extent");
  if (begin.size() != members * rank || extent.size() != members * rank) {
    throw Error(
        "{0}_begin and {0}_extent have {1} and {2} entries; {3} members of rank {4} need {5}", side,
        begin.size(), extent.size(), members, rank, members * rank)
        .help("the rank graph is damaged: shard the model again");
  }
  std::vector<Box> boxes(members);
  for (size_t i = 0; i < members; ++i) {
    const auto at = static_cast<std::ptrdiff_t>(i * rank);
    const auto end = at + static_cast<std::ptrdiff_t>(rank);
    boxes[i] = {{begin.begin() + at, begin.begin() + end},
                {extent.begin() + at, extent.begin() + end}};
  }
  return boxes;
}

void all_to_all(const KernelCall& call) {
  const Arguments a = arguments_of(call);
  const size_t members = a.collective.group.size();
  call.communicator->all_to_all(a.collective, a.x, a.y,
                                boxes_of(call, "send", members, a.x.shape.size()),
                                boxes_of(call, "recv", members, a.y.shape.size()));
}

constexpr KernelRow kRows[] = {
    {"autosp", "AllReduce", nullptr, all_reduce, nullptr, reference::Aliasing::kOperandZero},
    {"autosp", "AllGather", nullptr, all_gather},
    {"autosp", "ReduceScatter", nullptr, reduce_scatter},
    {"autosp", "AllToAll", nullptr, all_to_all},
};

}  // namespace

std::span<const KernelRow> collective_rows() { return kRows; }

}  // namespace autosp::executor
