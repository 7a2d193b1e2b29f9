#include "executor/transport/checked.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "executor/transport/boxes.h"

namespace autosp::executor {

std::string describe(const Collective& collective) {
  return fmt::format("{} \"{}\" of {} on group [{}]", collective.op, collective.node,
                     ir::name_of(collective.dtype), fmt::join(collective.group, ", "));
}

std::vector<int64_t> even_cuts(int64_t count, size_t members) {
  std::vector<int64_t> cuts(members + 1);
  for (size_t i = 0; i <= members; ++i) {
    cuts[i] = count * static_cast<int64_t>(i) / static_cast<int64_t>(members);
  }
  return cuts;
}

size_t CheckedCommunicator::member(const Collective& collective) const {
  const auto at = std::ranges::find(collective.group, rank());
  AUTOSP_CHECK(at != collective.group.end(), "rank {} in {}", rank(), describe(collective));
  return static_cast<size_t>(at - collective.group.begin());
}

namespace {

Error mismatch(const Collective& collective, const std::string& what) {
  return Error("{}: {}", describe(collective), what)
      .note("what the node says does not fit its operands")
      .help("the rank graph is damaged: shard the model again");
}

// The extents of one side of a gather or scatter: parts along `axis` of `whole`.
void check_parts(const Collective& collective, const ir::Shape& whole, const ir::Shape& part,
                 size_t axis, const std::vector<int64_t>& sizes, size_t me) {
  if (sizes.size() != collective.group.size()) {
    throw mismatch(collective,
                   fmt::format("{} sizes for {} members", sizes.size(), collective.group.size()));
  }
  ir::Shape expected = whole;
  if (axis >= whole.size()) {
    throw mismatch(collective, fmt::format("axis {} of {}", axis, ir::to_string(whole)));
  }
  expected[axis] = sizes[me];
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  if (part != expected || total != whole[axis]) {
    throw mismatch(collective, fmt::format("sizes [{}] along axis {} do not make {} of this "
                                           "rank's {}",
                                           fmt::join(sizes, ", "), axis, ir::to_string(whole),
                                           ir::to_string(part)));
  }
}

void check_boxes(const Collective& collective, const std::vector<Box>& boxes,
                 const ir::Shape& shape, const char* side) {
  if (boxes.size() != collective.group.size()) {
    throw mismatch(collective, fmt::format("{} {} boxes for {} members", boxes.size(), side,
                                           collective.group.size()));
  }
  for (size_t i = 0; i < boxes.size(); ++i) {
    if (fits(boxes[i], shape)) continue;
    throw mismatch(collective, fmt::format("{} box {} begins at [{}] with extents [{}], outside {}",
                                           side, i, fmt::join(boxes[i].begin, ", "),
                                           fmt::join(boxes[i].extent, ", "), ir::to_string(shape)));
  }
}

// Checked before members meet: nothing may fail between them.
void check_summable(const Collective& collective) {
  if (ir::is_floating(collective.dtype) || ir::is_integer(collective.dtype)) return;
  throw mismatch(collective, "only numbers can be summed");
}

}  // namespace

void CheckedCommunicator::all_reduce(const Collective& collective, const ConstBuffer& x,
                                     const Buffer& y) {
  check_summable(collective);
  if (x.shape != y.shape) {
    throw mismatch(collective,
                   fmt::format("{} into {}", ir::to_string(x.shape), ir::to_string(y.shape)));
  }
  reduce_all(collective, static_cast<const std::byte*>(x.data), static_cast<std::byte*>(y.data),
             ir::num_elements(x.shape));
}

void CheckedCommunicator::all_gather(const Collective& collective, const ConstBuffer& x,
                                     const Buffer& y, size_t axis,
                                     const std::vector<int64_t>& sizes) {
  check_parts(collective, y.shape, x.shape, axis, sizes, member(collective));
  const std::vector<Box> send(collective.group.size(), whole_box(x.shape));
  exchange(collective, x, y, send, slabs(y.shape, axis, sizes));
}

void CheckedCommunicator::reduce_scatter(const Collective& collective, const ConstBuffer& x,
                                         const Buffer& y, size_t axis,
                                         const std::vector<int64_t>& sizes) {
  check_summable(collective);
  check_parts(collective, x.shape, y.shape, axis, sizes, member(collective));
  reduce_boxes(collective, x, y, slabs(x.shape, axis, sizes));
}

void CheckedCommunicator::all_to_all(const Collective& collective, const ConstBuffer& x,
                                     const Buffer& y, const std::vector<Box>& send,
                                     const std::vector<Box>& receive) {
  check_boxes(collective, send, x.shape, "send");
  check_boxes(collective, receive, y.shape, "receive");
  const size_t me = member(collective);
  if (send[me].num_elements() != receive[me].num_elements()) {
    throw mismatch(collective, fmt::format("this rank sends itself {} elements and receives {}",
                                           send[me].num_elements(), receive[me].num_elements()));
  }
  exchange(collective, x, y, send, receive);
}

}  // namespace autosp::executor
