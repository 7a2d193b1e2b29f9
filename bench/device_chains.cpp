#include "device_chains.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "executor/run.h"
#include "ir/builder.h"
#include "random_tensor.h"

namespace autosp::bench {

namespace {

using executor::Arrays;
using ir::DataType;
using Json = nlohmann::ordered_json;

constexpr int kRepetitions = 4;  // the last one is measured

// A graph and what it is fed.
struct Chain {
  std::shared_ptr<ir::Graph> graph = std::make_shared<ir::Graph>();
  ir::Builder build{*graph};
  Arrays feeds;

  ValueId input(const std::string& name, const ir::Type& type) {
    feeds[name] = random_tensor(type, static_cast<unsigned>(feeds.size() + 1));
    return graph->add_input(name, type);
  }
  ValueId mul(ValueId a, ValueId b) { return build.binary("Mul", a, b); }
};

Chain rms_norm(const ir::Type& type) {
  Chain c;
  const ValueId x = c.build.cast(c.input("x", type), DataType::kFloat32);
  const ValueId mean = c.mul(c.build.reduce_sum(c.mul(x, x), {-1}, true),
                             c.build.scalar_like(x, 1.0 / static_cast<double>(type.shape[1])));
  const ValueId inverse = c.build.unary(
      "Reciprocal",
      c.build.unary("Sqrt", c.build.binary("Add", mean, c.build.scalar_like(x, 1e-6))));
  const ValueId normal = c.build.cast(c.mul(x, inverse), type.dtype);
  c.graph->add_output("y", c.mul(c.input("scale", {type.dtype, {type.shape[1]}}), normal));
  return c;
}

Chain gated(const ir::Type& type) {
  Chain c;
  const ValueId gate = c.build.cast(c.input("gate", type), DataType::kFloat32);
  const ValueId silu = c.build.cast(c.mul(gate, c.build.unary("Sigmoid", gate)), type.dtype);
  c.graph->add_output("y", c.mul(silu, c.input("up", type)));
  return c;
}

struct Run {
  double seconds = 0;  // in kernels
  ir::Tensor y;
};

Run run(const std::shared_ptr<executor::Backend>& backend, const Chain& chain, bool fuse) {
  executor::RunOptions options{
      .threads_per_rank = 1, .trace = true, .repeat = kRepetitions, .backend = backend};
  options.compile.fuse = fuse;
  const executor::RunResult result =
      executor::run_in_threads({chain.graph}, {chain.feeds}, options);
  for (const std::string& notice : result.ranks[0].notices)
    fmt::print(stderr, "note: {}\n", notice);
  Run measured{.y = result.ranks[0].outputs.at("y")};
  for (const executor::TraceEvent& event : result.events) measured.seconds += event.duration;
  return measured;
}

double largest_difference(const ir::Tensor& a, const ir::Tensor& b) {
  double largest = 0;
  for (int64_t k = 0; k < a.num_elements(); ++k) {
    largest = std::max(largest, std::abs(a.value_as_double(k) - b.value_as_double(k)));
  }
  return largest;
}

Json measure(const std::shared_ptr<executor::Backend>& backend, const Chain& chain) {
  const Run apart = run(backend, chain, false);
  const Run fused = run(backend, chain, true);
  const double difference = largest_difference(apart.y, fused.y);
  if (!(difference < 0.05)) throw Error("fused, a chain differs by {}", difference);
  auto bytes = static_cast<double>(fused.y.bytes().size());
  for (const auto& [name, feed] : chain.feeds) bytes += static_cast<double>(feed.bytes().size());
  return {{"seconds", apart.seconds},
          {"fused_seconds", fused.seconds},
          {"fused_bytes_per_second", bytes / fused.seconds},
          {"largest_difference", difference}};
}

}  // namespace

Json measure_chains(const std::shared_ptr<executor::Backend>& backend, int64_t rows,
                    int64_t columns, DataType type) {
  const ir::Type full{type, {rows, columns}};
  return {{"norm", measure(backend, rms_norm(full))}, {"gate", measure(backend, gated(full))}};
}

}  // namespace autosp::bench
