// The transport suite under MPI: `mpirun -np N test_mpi` runs every case in every rank and exits
// with 0 when all agree. `test_mpi FAILURE` makes the ranks go wrong in one way; the run must end
// with the right message (test/CMakeLists.txt says which).
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>

#include "../transport_suite.h"
#include "base/error.h"
#include "executor/memory.h"
#include "executor/run.h"
#include "executor/transport/boxes.h"
#include "ir/builder.h"

namespace autosp::executor {
namespace {

void reduce(Communicator& world, const std::string& node, std::vector<int> group, int64_t count) {
  const ir::Tensor x({ir::DataType::kFloat32, {count}});
  ir::Tensor y(x.type());
  world.all_reduce({node, "AllReduce", std::move(group), ir::DataType::kFloat32},
                   {x.bytes().data(), x.shape()}, {y.mutable_bytes(), y.shape()});
}

// Hands every collective on with its operand and result in memory that the ranks have offered.
class InOfferedMemory final : public Communicator {
 public:
  explicit InOfferedMemory(Communicator& world) : world_(world), arena_(kBytes, true) {
    world_.offer(arena_.region());
  }

  int rank() const override { return world_.rank(); }
  int size() const override { return world_.size(); }
  int64_t staging_bytes() const override { return world_.staging_bytes(); }

  void all_reduce(const Collective& c, const ConstBuffer& x, const Buffer& y) override {
    moved(c, x, y, [&](const auto& px, const auto& py) { world_.all_reduce(c, px, py); });
  }
  void all_gather(const Collective& c, const ConstBuffer& x, const Buffer& y, size_t axis,
                  const std::vector<int64_t>& sizes) override {
    moved(c, x, y,
          [&](const auto& px, const auto& py) { world_.all_gather(c, px, py, axis, sizes); });
  }
  void reduce_scatter(const Collective& c, const ConstBuffer& x, const Buffer& y, size_t axis,
                      const std::vector<int64_t>& sizes) override {
    moved(c, x, y,
          [&](const auto& px, const auto& py) { world_.reduce_scatter(c, px, py, axis, sizes); });
  }
  void all_to_all(const Collective& c, const ConstBuffer& x, const Buffer& y,
                  const std::vector<Box>& send, const std::vector<Box>& receive) override {
    moved(c, x, y,
          [&](const auto& px, const auto& py) { world_.all_to_all(c, px, py, send, receive); });
  }

 private:
  static constexpr int64_t kBytes = int64_t{1} << 26;

  // x goes to the arena's beginning, y to its middle, unless they are one.
  template <typename F>
  void moved(const Collective& c, const ConstBuffer& x, const Buffer& y, F&& f) {
    const auto bytes = [&](const ir::Shape& shape) {
      return static_cast<size_t>(ir::num_elements(shape)) * ir::element_size(c.dtype);
    };
    std::byte* y_at = arena_.at(x.data == y.data ? 0 : kBytes / 2);
    std::memcpy(y_at, y.data, bytes(y.shape));
    std::memcpy(arena_.at(0), x.data, bytes(x.shape));
    f(ConstBuffer{arena_.at(0), x.shape}, Buffer{y_at, y.shape});
    std::memcpy(y.data, y_at, bytes(y.shape));
  }

  Communicator& world_;
  Arena arena_;
};

std::string run_cases(Communicator& world, const std::string& how) {
  std::string wrong;
  for (const TransportCase& suite_case : transport_cases()) {
    const std::string complaint = suite_case.run(world);
    if (!complaint.empty()) wrong += fmt::format("{} {}: {}\n", suite_case.name, how, complaint);
  }
  return wrong;
}

// What others have and this rank reads is resident here, and not its own.
std::string wrong_resident_peak(Communicator& world) {
  constexpr int64_t kBytes = int64_t{32} << 20;
  constexpr int64_t kTolerance = int64_t{4} << 20;
  const auto ranks = static_cast<int64_t>(world.size());
  const Arena arena(2 * kBytes, true);
  std::memset(arena.at(0), 1, 2 * kBytes);
  world.offer(arena.region());
  const ir::Shape shape = {ranks, kBytes / 4 / ranks};
  const std::vector<Box> rows = slabs(shape, 0, std::vector<int64_t>(world.size(), 1));
  std::vector<int> group(static_cast<size_t>(world.size()));
  std::iota(group.begin(), group.end(), 0);
  world.all_to_all({"large", "AllToAll", group, ir::DataType::kFloat32}, {arena.at(0), shape},
                   {arena.at(kBytes), shape}, rows, rows);
  const int64_t read = kBytes / ranks * (ranks - 1);
  const int64_t own = world.own_resident_peak();
  const int64_t all = resident_peak();
  world.offer({});
  if (std::abs(all - own - read) <= kTolerance) return "";
  return fmt::format("{} bytes resident at most, {} of them its own, {} read of others\n", all, own,
                     read);
}

int run_suite(MpiSession& session) {
  Communicator& world = session.communicator(30);
  std::string wrong = wrong_resident_peak(world);
  // In place first: then nothing has been staged yet.
  InOfferedMemory offered(world);
  wrong += run_cases(offered, "in offered memory");
  if (offered.staging_bytes() != 0) wrong += "operands in offered memory were staged\n";
  world.offer({});
  wrong += run_cases(world, "by messages");
  if (world.size() > 1 && world.staging_bytes() == 0) wrong += "messages were not staged\n";
  int failures = 0;
  for (const std::string& text : session.gather(wrong)) {
    failures += text.empty() ? 0 : 1;
    fmt::print(stderr, "{}", text);
  }
  return failures == 0 ? 0 : 1;
}

// Rank 1 calls another collective, or one of another size or shape; or it never comes, or offers no
// memory.
void go_wrong(Communicator& world, const std::string& how) {
  const bool odd_one = world.rank() == 1;
  if (how == "other-node") reduce(world, odd_one ? "layer1/dw" : "layer0/dw", {0, 1}, 4);
  if (how == "other-size") reduce(world, "layer0/dw", {0, 1}, odd_one ? 6 : 4);
  if (how == "other-shape") {
    const ir::Tensor x(
        ir::Type{ir::DataType::kFloat32, odd_one ? ir::Shape{2, 12} : ir::Shape{4, 6}});
    ir::Tensor y(ir::Type{ir::DataType::kFloat32, {2, 6}});
    const std::vector<int64_t> halves =
        odd_one ? std::vector<int64_t>{6, 6} : std::vector<int64_t>{2, 2};
    world.reduce_scatter({"layer0/dw", "ReduceScatter", {0, 1}, ir::DataType::kFloat32},
                         {x.bytes().data(), x.shape()}, {y.mutable_bytes(), y.shape()},
                         odd_one ? 1 : 0, halves);
  }
  if (how == "late") {
    if (odd_one) std::this_thread::sleep_for(std::chrono::seconds(20));
    reduce(world, "layer0/dw", {0, 1}, 4);
  }
  if (how == "late-offer") {
    if (odd_one) std::this_thread::sleep_for(std::chrono::seconds(20));
    world.offer({});
  }
}

// A rank graph whose Gather is out of range in rank 1; rank 0 waits in the AllReduce behind it.
std::shared_ptr<const ir::Graph> failing_graph(int rank) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId table = build.constant(ir::Tensor::filled({ir::DataType::kFloat32, {3}}, 1));
  const ValueId row = build.gather(table, build.int64s({rank == 1 ? 7 : 0}), 0);
  const ValueId sum = build.node("AllReduce", {row}, graph->type(row),
                                 {{"group", std::vector<int64_t>{0, 1}}}, "autosp");
  graph->add_output("sum", sum);
  return graph;
}

int run(const std::string& mode) {
  MpiSession session;
  if (mode.empty()) return run_suite(session);
  try {
    if (mode == "failing-rank") {
      run_mpi_rank(session, failing_graph(session.rank()), {}, {});
    } else {
      go_wrong(session.communicator(2), mode);
    }
  } catch (const Error& error) {
    session.abort(error.what(), 2);
  }
  return 0;
}

}  // namespace
}  // namespace autosp::executor

int main(int argc, char** argv) { return autosp::executor::run(argc > 1 ? argv[1] : ""); }
