// The transport suite under MPI: `mpirun -np N test_mpi` runs every case in every rank and exits
// with 0 when all agree. `test_mpi FAILURE` makes the ranks go wrong in one way; the run must end
// with the right message (test/CMakeLists.txt says which).
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "../transport_suite.h"
#include "base/error.h"
#include "executor/run.h"
#include "ir/builder.h"

namespace autosp::executor {
namespace {

void reduce(Communicator& world, const std::string& node, std::vector<int> group, int64_t count) {
  const ir::Tensor x({ir::DataType::kFloat32, {count}});
  ir::Tensor y(x.type());
  world.all_reduce({node, "AllReduce", std::move(group), ir::DataType::kFloat32},
                   {x.bytes().data(), x.shape()}, {y.mutable_bytes(), y.shape()});
}

int run_suite(MpiSession& session) {
  Communicator& world = session.communicator(30);
  std::string wrong;
  for (const TransportCase& suite_case : transport_cases()) {
    const std::string complaint = suite_case.run(world);
    if (!complaint.empty()) wrong += fmt::format("{}: {}\n", suite_case.name, complaint);
  }
  int failures = 0;
  for (const std::string& text : session.gather(wrong)) {
    failures += text.empty() ? 0 : 1;
    fmt::print(stderr, "{}", text);
  }
  return failures == 0 ? 0 : 1;
}

// Rank 1 calls another collective, or one of another size; or it never comes.
void go_wrong(Communicator& world, const std::string& how) {
  const bool odd_one = world.rank() == 1;
  if (how == "other-node") reduce(world, odd_one ? "layer1/dw" : "layer0/dw", {0, 1}, 4);
  if (how == "other-size") reduce(world, "layer0/dw", {0, 1}, odd_one ? 6 : 4);
  if (how == "late") {
    if (odd_one) std::this_thread::sleep_for(std::chrono::seconds(20));
    reduce(world, "layer0/dw", {0, 1}, 4);
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
