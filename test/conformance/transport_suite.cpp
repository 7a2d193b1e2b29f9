#include "transport_suite.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "ir/tensor.h"

namespace autosp::executor {

namespace {

using ir::DataType;
using ir::Shape;
using ir::Tensor;

std::vector<int> everyone(const Communicator& world) {
  std::vector<int> group(static_cast<size_t>(world.size()));
  std::iota(group.begin(), group.end(), 0);
  return group;
}

// All ranks; the same backwards; the even and the odd ones; neighbours in pairs.
std::vector<std::vector<int>> groups_of(const Communicator& world) {
  std::vector<std::vector<int>> groups = {everyone(world), everyone(world), {}, {}};
  std::ranges::reverse(groups[1]);
  for (int rank : groups[0]) groups[2 + static_cast<size_t>(rank % 2)].push_back(rank);
  for (int rank = 0; rank + 1 < world.size(); rank += 2) groups.push_back({rank, rank + 1});
  std::erase_if(groups, [](const auto& group) { return group.empty(); });
  return groups;
}

ConstBuffer reading(const Tensor& tensor) { return {tensor.bytes().data(), tensor.shape()}; }
Buffer writing(Tensor& tensor) { return {tensor.mutable_bytes(), tensor.shape()}; }

double value(int rank, int64_t index) { return rank * 100 + static_cast<double>(index % 100); }

// Filled with f(element index).
template <typename F>
Tensor fill(DataType dtype, const Shape& shape, F&& f) {
  Tensor tensor({dtype, shape});
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const Tensor element = Tensor::scalar(dtype, f(i));
    std::ranges::copy(element.bytes(),
                      tensor.mutable_bytes() + i * static_cast<int64_t>(ir::element_size(dtype)));
  }
  return tensor;
}

// value(rank, element index), for many.
Tensor fill_floats(const Shape& shape, int rank) {
  Tensor tensor({DataType::kFloat32, shape});
  int64_t i = 0;
  for (float& element : tensor.mutable_values<float>()) {
    element = static_cast<float>(value(rank, i++));
  }
  return tensor;
}

std::string difference(const Tensor& actual, const Tensor& expected, const std::string& where) {
  for (int64_t i = 0; i < expected.num_elements(); ++i) {
    if (actual.value_as_double(i) != expected.value_as_double(i)) {
      return fmt::format("{}: element {} is {}, not {}", where, i, actual.value_as_double(i),
                         expected.value_as_double(i));
    }
  }
  return "";
}

// Runs `body(group, me)` for each group this rank is in; the first complaint.
template <typename F>
std::string for_each_group(Communicator& world, F&& body) {
  for (const std::vector<int>& group : groups_of(world)) {
    const auto at = std::ranges::find(group, world.rank());
    if (at == group.end()) continue;
    const std::string wrong = body(group, static_cast<size_t>(at - group.begin()));
    if (!wrong.empty()) return fmt::format("group [{}]: {}", fmt::join(group, ", "), wrong);
  }
  return "";
}

std::string all_reduce_sums(Communicator& world) {
  return for_each_group(world, [&](const std::vector<int>& group, size_t) -> std::string {
    for (DataType dtype :
         {DataType::kFloat32, DataType::kFloat64, DataType::kInt64, DataType::kInt32}) {
      for (int64_t count : {0, 1, 5, 1000}) {
        const Tensor x = fill(dtype, {count}, [&](int64_t i) { return value(world.rank(), i); });
        const Tensor expected = fill(dtype, {count}, [&](int64_t i) {
          double sum = 0;
          for (int rank : group) sum += value(rank, i);
          return sum;
        });
        Tensor y(x.type());
        world.all_reduce({"n", "AllReduce", group, dtype}, reading(x), writing(y));
        std::string wrong = difference(y, expected, ir::to_string(x.type()));
        if (!wrong.empty()) return wrong;
      }
    }
    return "";
  });
}

// Numbers whose sum depends on the order: all members must hold the sum in group order.
std::string sums_are_taken_in_group_order(Communicator& world) {
  const auto term = [](int rank, int64_t i) {
    return 1.0F / static_cast<float>(3 + rank + 7 * i) + (rank % 2 == 0 ? 1e4F : 0.0F);
  };
  return for_each_group(world, [&](const std::vector<int>& group, size_t me) -> std::string {
    const int64_t count = 37;
    Tensor x({DataType::kFloat32, {count}});
    Tensor expected(x.type());
    for (int64_t i = 0; i < count; ++i) {
      const auto k = static_cast<size_t>(i);
      x.mutable_values<float>()[k] = term(world.rank(), i);
      float sum = term(group[0], i);
      for (size_t m = 1; m < group.size(); ++m) sum += term(group[m], i);
      expected.mutable_values<float>()[k] = sum;
    }
    Tensor y(x.type());
    world.all_reduce({"n", "AllReduce", group, DataType::kFloat32}, reading(x), writing(y));
    std::string wrong = difference(y, expected, "AllReduce");
    if (!wrong.empty()) return wrong;

    std::vector<int64_t> sizes(group.size(), 0);
    sizes.back() = count;  // the last member keeps everything
    Tensor part({DataType::kFloat32, {sizes[me]}});
    world.reduce_scatter({"n", "ReduceScatter", group, DataType::kFloat32}, reading(x),
                         writing(part), 0, sizes);
    return sizes[me] == 0 ? "" : difference(part, expected, "ReduceScatter");
  });
}

std::string all_reduce_works_in_place(Communicator& world) {
  return for_each_group(world, [&](const std::vector<int>& group, size_t) -> std::string {
    Tensor x = fill(DataType::kFloat32, {3000}, [&](int64_t i) { return value(world.rank(), i); });
    const Tensor expected = fill(DataType::kFloat32, {3000}, [&](int64_t i) {
      double sum = 0;
      for (int rank : group) sum += value(rank, i);
      return sum;
    });
    world.all_reduce({"n", "AllReduce", group, DataType::kFloat32}, reading(x), writing(x));
    return difference(x, expected, "AllReduce");
  });
}

std::string bfloat16_sums_are_rounded_once(Communicator& world) {
  const std::vector<int> group = everyone(world);
  const Tensor x = Tensor::filled({DataType::kBFloat16, {3}}, world.rank() == 0 ? 256 : 1);
  const double exact = 256 + static_cast<double>(group.size()) - 1;
  const Tensor expected = Tensor::filled(x.type(), exact);
  Tensor y(x.type());
  world.all_reduce({"n", "AllReduce", group, DataType::kBFloat16}, reading(x), writing(y));
  return difference(y, expected, "AllReduce");
}

// Sizes 1, 3, 1, 3, ... or with zeros: 0, 2, 0, 2, ... .
std::vector<int64_t> uneven(size_t members, bool zeros) {
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < members; ++i) {
    sizes.push_back((zeros ? 0 : 1) + 2 * static_cast<int64_t>(i % 2));
  }
  return sizes;
}

// What a tensor of shape `shape` holds when rank r holds value(r, position in r's part) and the
// parts have `sizes` along `axis`.
Tensor concatenated(const std::vector<int>& group, const Shape& shape, size_t axis,
                    const std::vector<int64_t>& sizes) {
  int64_t inner = 1;
  for (size_t k = axis + 1; k < shape.size(); ++k) inner *= shape[k];
  return fill(DataType::kFloat32, shape, [&](int64_t i) {
    const int64_t outer = i / (inner * shape[axis]);
    int64_t at = i / inner % shape[axis];
    size_t part = 0;
    while (at >= sizes[part]) at -= sizes[part++];
    return value(group[part], (outer * sizes[part] + at) * inner + i % inner);
  });
}

std::string all_gather_concatenates(Communicator& world) {
  return for_each_group(world, [&](const std::vector<int>& group, size_t me) -> std::string {
    for (size_t axis = 0; axis < 3; ++axis) {
      for (bool zeros : {false, true}) {
        const std::vector<int64_t> sizes = uneven(group.size(), zeros);
        Shape whole = {2, 3, 5};
        whole[axis] = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
        Shape mine = whole;
        mine[axis] = sizes[me];
        const Tensor x =
            fill(DataType::kFloat32, mine, [&](int64_t i) { return value(world.rank(), i); });
        Tensor y({DataType::kFloat32, whole});
        world.all_gather({"n", "AllGather", group, DataType::kFloat32}, reading(x), writing(y),
                         axis, sizes);
        std::string wrong = difference(y, concatenated(group, whole, axis, sizes),
                                       fmt::format("axis {}, zeros {}", axis, zeros));
        if (!wrong.empty()) return wrong;
      }
    }
    return "";
  });
}

std::string reduce_scatter_keeps_a_part(Communicator& world) {
  return for_each_group(world, [&](const std::vector<int>& group, size_t me) -> std::string {
    for (size_t axis = 0; axis < 3; ++axis) {
      for (bool zeros : {false, true}) {
        const std::vector<int64_t> sizes = uneven(group.size(), zeros);
        Shape whole = {2, 3, 5};
        whole[axis] = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
        const Tensor x =
            fill(DataType::kFloat32, whole, [&](int64_t i) { return value(world.rank(), i); });
        const Tensor sum = fill(DataType::kFloat32, whole, [&](int64_t i) {
          double total = 0;
          for (int rank : group) total += value(rank, i);
          return total;
        });
        std::vector<int64_t> begin(3, 0);
        begin[axis] = std::accumulate(sizes.begin(),
                                      sizes.begin() + static_cast<std::ptrdiff_t>(me), int64_t{0});
        Shape mine = whole;
        mine[axis] = sizes[me];
        Tensor y({DataType::kFloat32, mine});
        world.reduce_scatter({"n", "ReduceScatter", group, DataType::kFloat32}, reading(x),
                             writing(y), axis, sizes);
        std::string wrong =
            difference(y, sum.block(begin, mine), fmt::format("axis {}, zeros {}", axis, zeros));
        if (!wrong.empty()) return wrong;
      }
    }
    return "";
  });
}

// Ulysses: [sequence part, heads, 2] -> [sequence, heads part, 2], both uneven.
std::string all_to_all_changes_the_split_axis(Communicator& world) {
  return for_each_group(world, [&](const std::vector<int>& group, size_t me) -> std::string {
    const std::vector<int64_t> rows = uneven(group.size(), false);
    const std::vector<int64_t> heads = uneven(group.size(), true);
    const auto sum = [](const std::vector<int64_t>& sizes, size_t count) {
      return std::accumulate(sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(count),
                             int64_t{0});
    };
    const int64_t all_heads = sum(heads, heads.size());
    const Tensor x = fill(DataType::kFloat32, {rows[me], all_heads, 2},
                          [&](int64_t i) { return value(world.rank(), i); });
    Tensor y({DataType::kFloat32, {sum(rows, rows.size()), heads[me], 2}});
    std::vector<Box> send;
    std::vector<Box> receive;
    for (size_t i = 0; i < group.size(); ++i) {
      send.push_back({{0, sum(heads, i), 0}, {rows[me], heads[i], 2}});
      receive.push_back({{sum(rows, i), 0, 0}, {rows[i], heads[me], 2}});
    }
    world.all_to_all({"n", "AllToAll", group, DataType::kFloat32}, reading(x), writing(y), send,
                     receive);
    const Tensor whole = concatenated(group, {sum(rows, rows.size()), all_heads, 2}, 0, rows);
    const std::vector<int64_t> begin = {0, sum(heads, me), 0};
    return difference(y, whole.block(begin, y.shape()), "AllToAll");
  });
}

// Boxes of different ranks: a matrix's columns arrive as rows of a flat vector, int64 elements.
std::string all_to_all_reshapes_boxes(Communicator& world) {
  return for_each_group(world, [&](const std::vector<int>& group, size_t me) -> std::string {
    const auto members = static_cast<int64_t>(group.size());
    const Tensor x =
        fill(DataType::kInt64, {3, members}, [&](int64_t i) { return value(world.rank(), i); });
    Tensor y({DataType::kInt64, {members * 3}});
    std::vector<Box> send;
    std::vector<Box> receive;
    for (int64_t i = 0; i < members; ++i) {
      send.push_back({{0, i}, {3, 1}});
      receive.push_back({{i * 3}, {3}});
    }
    world.all_to_all({"n", "AllToAll", group, DataType::kInt64}, reading(x), writing(y), send,
                     receive);
    const Tensor expected = fill(DataType::kInt64, y.shape(), [&](int64_t i) {
      return value(group[static_cast<size_t>(i / 3)], i % 3 * members + static_cast<int64_t>(me));
    });
    return difference(y, expected, "AllToAll");
  });
}

// Halo: every member passes its last row to the next one, nothing to the others.
std::string all_to_all_with_empty_boxes(Communicator& world) {
  return for_each_group(world, [&](const std::vector<int>& group, size_t me) -> std::string {
    const size_t members = group.size();
    const size_t next = (me + 1) % members;
    const size_t previous = (me + members - 1) % members;
    const Tensor x =
        fill(DataType::kFloat32, {4, 3}, [&](int64_t i) { return value(world.rank(), i); });
    Tensor y({DataType::kFloat32, {1, 3}});
    std::vector<Box> send(members, {{0, 0}, {0, 3}});
    std::vector<Box> receive(members, {{0, 0}, {0, 3}});
    send[next] = {{3, 0}, {1, 3}};
    receive[previous] = {{0, 0}, {1, 3}};
    world.all_to_all({"n", "AllToAll", group, DataType::kFloat32}, reading(x), writing(y), send,
                     receive);
    const Tensor expected =
        fill(DataType::kFloat32, {1, 3}, [&](int64_t i) { return value(group[previous], 9 + i); });
    return difference(y, expected, "halo");
  });
}

// As all_to_all_changes_the_split_axis, in rows and boxes that are copied past the caches: 1 MiB
// and more from each, rows of odd lengths that begin at odd addresses.
std::string large_all_to_all(Communicator& world) {
  const std::vector<int> group = everyone(world);
  const auto members = static_cast<int64_t>(group.size());
  constexpr int64_t kTokens = 1021;
  constexpr int64_t kWidth = 263;
  const Tensor x = fill_floats({kTokens, members, kWidth}, world.rank());
  Tensor y({DataType::kFloat32, {kTokens * members, 1, kWidth}});
  std::vector<Box> send;
  std::vector<Box> receive;
  for (int64_t i = 0; i < members; ++i) {
    send.push_back({{0, i, 0}, {kTokens, 1, kWidth}});
    receive.push_back({{i * kTokens, 0, 0}, {kTokens, 1, kWidth}});
  }
  world.all_to_all({"n", "AllToAll", group, DataType::kFloat32}, reading(x), writing(y), send,
                   receive);
  const auto got = y.values<float>();
  for (int64_t i = 0; i < y.num_elements(); ++i) {
    const int64_t token = i / kWidth;
    const int64_t at = (token % kTokens * members + world.rank()) * kWidth + i % kWidth;
    const auto from = static_cast<size_t>(token / kTokens);
    if (got[static_cast<size_t>(i)] != static_cast<float>(value(group[from], at))) {
      return fmt::format("element {} is {}", i, got[static_cast<size_t>(i)]);
    }
  }
  return "";
}

// Buffers are reused at once after each collective: nobody may still read them.
std::string many_rounds_without_pause(Communicator& world) {
  const std::vector<int> group = everyone(world);
  Tensor x({DataType::kFloat32, {64}});
  Tensor y(x.type());
  for (int round = 0; round < 300; ++round) {
    std::ranges::fill(x.mutable_values<float>(), static_cast<float>(round + world.rank()));
    world.all_reduce({fmt::format("n{}", round), "AllReduce", group, DataType::kFloat32},
                     reading(x), writing(y));
    double expected = 0;
    for (int rank : group) expected += round + rank;
    if (y.value_as_double(63) != expected) return fmt::format("round {}", round);
  }
  return "";
}

}  // namespace

std::vector<TransportCase> transport_cases() {
  return {
      {"AllReduceSums", all_reduce_sums},
      {"AllReduceWorksInPlace", all_reduce_works_in_place},
      {"SumsAreTakenInGroupOrder", sums_are_taken_in_group_order},
      {"BFloat16SumsAreRoundedOnce", bfloat16_sums_are_rounded_once},
      {"AllGatherConcatenates", all_gather_concatenates},
      {"ReduceScatterKeepsAPart", reduce_scatter_keeps_a_part},
      {"AllToAllChangesTheSplitAxis", all_to_all_changes_the_split_axis},
      {"AllToAllReshapesBoxes", all_to_all_reshapes_boxes},
      {"AllToAllWithEmptyBoxes", all_to_all_with_empty_boxes},
      {"LargeAllToAll", large_all_to_all},
      {"ManyRoundsWithoutPause", many_rounds_without_pause},
  };
}

}  // namespace autosp::executor
