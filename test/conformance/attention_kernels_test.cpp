// The tiled attention kernels of every instruction set against the reference kernels: odd sizes,
// grouped heads, every mask, bias and kind of dead row, every type, by one worker and by several.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "executor/kernels/attention/schedule.h"
#include "executor/run.h"
#include "executor/workers.h"
#include "ir/builder.h"
#include "support/devices.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using attention::Functions;
using ir::DataType;
using ir::Shape;
using ir::Tensor;

// --- One kernel table per instruction set.

template <const Functions* (*functions)()>
const KernelTable& table() {
  static const KernelTable kTable(
      functions()->name,
      {{ir::kAutospDomain, "Attention", attention::accepts,
        [](const KernelCall& call) { attention::forward(call, *functions()); },
        [](const ir::Graph& graph, const ir::Node& node, int workers) {
          return attention::forward_workspace(graph, node, workers, *functions());
        }},
       {ir::kAutospDomain, "AttentionGrad", attention::accepts,
        [](const KernelCall& call) { attention::backward(call, *functions()); },
        [](const ir::Graph& graph, const ir::Node& node, int workers) {
          return attention::backward_workspace(graph, node, workers, *functions());
        }}});
  return kTable;
}

// AMX's leave weights with dropout to others (attention::functions_for).
std::vector<const KernelTable*> available_tables(DataType type, bool drops = false) {
  std::vector<const KernelTable*> tables = {&table<attention::portable_functions>()};
  if (type == DataType::kBFloat16 && attention::amx_functions() != nullptr && !drops) {
    tables.push_back(&table<attention::amx_functions>());
  }
  if (attention::avx2_functions() != nullptr) {
    tables.push_back(&table<attention::avx2_functions>());
  }
  if (attention::avx512_functions() != nullptr) {
    tables.push_back(&table<attention::avx512_functions>());
  }
  return tables;
}

// --- Cases.

struct Sizes {
  int64_t batch = 1, kv_heads = 1, group = 1, queries = 1, keys = 1, width = 1, value_width = 1;
};

struct AttentionCase {
  std::string name;
  Sizes sizes;
  ir::Attributes attributes = {{"scale", 0.25F}};
  std::map<std::string, Tensor> optional{};  // by operand name
  bool bias_gradient = true;
  double tolerance = 2e-5;
  DataType type = DataType::kFloat32;
};
void PrintTo(const AttentionCase& c, std::ostream* out) { *out << c.name; }

Tensor numbers(const Shape& shape, const std::function<double(int64_t)>& at,
               DataType type = DataType::kFloat32) {
  Tensor tensor({type, shape});
  const size_t size = element_size(type);
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    const Tensor one = Tensor::scalar(type, at(k));
    std::ranges::copy(one.bytes(), tensor.mutable_bytes() + static_cast<size_t>(k) * size);
  }
  return tensor;
}

// Keys (query - window, query], where query 0 stands at the key (keys - queries).
void add_window(AttentionCase& c, int64_t window) {
  const Sizes& s = c.sizes;
  c.optional["begin"] = numbers(
      {1, s.queries},
      [&](int64_t i) { return static_cast<double>(i + s.keys - s.queries - window + 1); },
      DataType::kInt64);
  c.optional["end"] = numbers(
      {1, s.queries}, [&](int64_t i) { return static_cast<double>(i + s.keys - s.queries + 1); },
      DataType::kInt64);
}

// The first keys of every batch are padding: three of the first batch, six of the second, ...
void add_left_padding(AttentionCase& c) {
  const Sizes& s = c.sizes;
  c.optional["key_mask"] = numbers(
      {s.batch, s.keys}, [&](int64_t k) { return k % s.keys >= 3 * (1 + k / s.keys) ? 1 : 0; },
      DataType::kBool);
}

void add_segments(AttentionCase& c) {
  const Sizes& s = c.sizes;
  const auto segment = [&](int64_t extent) {
    return [extent](int64_t k) {
      const int64_t number = (k % extent) * 5 / extent;
      const int64_t repetition = k / extent;
      return static_cast<double>(-7 + 1000000007 * number + repetition);
    };
  };
  c.optional["query_segment"] = numbers({s.batch, s.queries}, segment(s.queries), DataType::kInt64);
  c.optional["key_segment"] = numbers({s.batch, s.keys}, segment(s.keys), DataType::kInt64);
}

void add_bias(AttentionCase& c, const Shape& shape, double scale = 1) {
  c.optional["bias"] =
      numbers(shape, [&](int64_t k) { return scale * std::sin(static_cast<double>(k) * 0.37); });
}

// Drops three weights in ten. `strides`: between the numbers of queries, and of keys.
void add_dropout(AttentionCase& c, int64_t offset, std::pair<int64_t, int64_t> strides) {
  const Sizes& s = c.sizes;
  const int64_t head = (s.queries + 1) * (s.keys + 12);
  reference::set_attention_dropout(
      c.attributes, {.key = {(uint64_t{1} << 40U) + 7, 12},
                     .offset = offset,
                     .strides = {s.kv_heads * s.group * head, s.group * head, head, strides.first,
                                 strides.second},
                     .from = 0.3F,
                     .scale = 1 / 0.7F});
  c.optional["step"] = Tensor::scalar(DataType::kInt64, 41);
}

std::vector<AttentionCase> all_cases() {
  std::vector<AttentionCase> cases;
  const auto add = [&](const std::string& name, const Sizes& sizes) -> AttentionCase& {
    cases.push_back({name, sizes});
    return cases.back();
  };
  for (const int64_t length : {1, 17, 61, 333, 700}) {
    const int64_t batch = length < 100 ? 2 : 1;
    for (const auto& [width, value_width] :
         {std::pair<int64_t, int64_t>{12, 12}, {64, 64}, {80, 48}, {128, 128}, {16, 5}}) {
      if (length > 100 && width != 64 && width != 12) continue;
      const std::string name = fmt::format("S{}d{}e{}", length, width, value_width);
      const Sizes sizes{batch, 2, 1, length, length, width, value_width};
      add(name, sizes);
      add_window(add(name + "causal", sizes), length);
    }
  }
  const Sizes grouped{2, 2, 3, 133, 133, 24, 32};
  add_window(add("groupedCausal", grouped), 133);
  add_window(add("oneHead", {1, 1, 1, 400, 400, 32, 32}), 400);
  add_window(add("threeHeads", {1, 3, 1, 250, 250, 16, 16}), 250);
  add("fewQueries", {1, 2, 2, 5, 333, 16, 16});
  add_window(add("fewQueriesCausal", {1, 2, 2, 100, 333, 16, 16}), 333);
  add("fewKeys", {1, 2, 2, 333, 3, 16, 16});
  for (const int64_t window : {1, 7, 48, 100}) {
    add_window(add(fmt::format("window{}", window), {1, 2, 1, 333, 333, 32, 32}), window);
  }
  // Tiles of 64 that are seen at their first or last key alone, and differently in each batch.
  AttentionCase& edges = add("edgesOfTiles", {1, 2, 1, 130, 195, 16, 16});
  add_window(edges, 67);
  add_bias(edges, {1, 1, 130, 195});
  AttentionCase& halves = add("otherKeysInEachBatch", {2, 2, 1, 130, 195, 16, 16});
  halves.optional["key_mask"] = numbers(
      {2, 195}, [](int64_t k) { return (k < 195) == (k % 195 < 64) ? 1 : 0; }, DataType::kBool);
  halves.optional["begin"] = numbers(
      {1, 130}, [](int64_t i) { return std::floor(static_cast<double>(129 - i) / 2); },
      DataType::kInt64);
  halves.attributes.set("dead_rows", std::string("zero"));
  const Sizes medium{2, 2, 2, 150, 170, 16, 32};
  add_segments(add("segments", medium));
  AttentionCase& packed = add("packedCausal", {2, 2, 2, 150, 150, 16, 32});
  add_segments(packed);
  add_window(packed, 150);
  add("softcap", medium).attributes.set("softcap", 1.5F);
  add("sink", medium).optional["sink"] = numbers({4}, [](int64_t k) { return 0.5 * k - 1; });
  AttentionCase& sink = add("sinkWithDeadRows", {2, 2, 2, 150, 150, 16, 32});
  sink.optional["sink"] = numbers({4}, [](int64_t k) { return 0.5 * k - 1; });
  add_left_padding(sink);
  add_window(sink, 20);
  const std::vector<Shape> biases = {{2, 4, 150, 170}, {1, 4, 150, 170}, {1, 1, 150, 170},
                                     {2, 1, 1, 170},   {1, 4, 1, 170},   {1, 4, 150, 1},
                                     {1, 1, 1, 1}};
  for (size_t k = 0; k < biases.size(); ++k) {
    AttentionCase& c = add(fmt::format("bias{}", k), medium);
    add_bias(c, biases[k]);
    if (k % 2 == 0) c.attributes.set("softcap", 2.0F);
    AttentionCase without = c;
    without.name += "withoutItsGradient";
    without.bias_gradient = false;
    cases.push_back(std::move(without));
  }
  // Masks that stayed additive, and rows that they mask as a whole.
  for (const double low : {-1e9, static_cast<double>(std::numeric_limits<float>::lowest()),
                           -std::numeric_limits<double>::infinity()}) {
    AttentionCase& c = add(fmt::format("additive{}", cases.size()), medium);
    // Of -1e9 the sum with a score depends on the precision, of -infinity it is no row at all.
    const bool whole_rows = low == static_cast<double>(std::numeric_limits<float>::lowest());
    c.optional["bias"] = numbers({1, 1, 150, 170}, [=](int64_t k) {
      const bool dead = whole_rows && k / 170 % 40 == 7;
      return dead || k % 170 > k / 170 + 20 ? low : 0;
    });
    c.bias_gradient = false;
  }
  for (const char* dead_rows : {"none", "uniform", "zero", "unmasked", "nan"}) {
    for (const int64_t gradient : {0, 1}) {
      const Sizes sizes{2, 2, 2, 150, 150, 16, 32};
      AttentionCase& padding = add(fmt::format("dead{}{}", dead_rows, gradient), sizes);
      add_left_padding(padding);
      add_window(padding, 150);
      padding.attributes.set("dead_rows", std::string(dead_rows));
      padding.attributes.set("dead_row_gradient", gradient);
      AttentionCase& more = add(fmt::format("deadBiased{}{}", dead_rows, gradient), sizes);
      more.attributes = padding.attributes;
      more.optional = padding.optional;
      more.attributes.set("softcap", 3.0F);
      add_segments(more);
      add_bias(more, {1, 4, 150, 150});
    }
  }
  // Whole blocks of queries that see nothing, and blocks of keys that nobody sees.
  for (const char* dead_rows : {"uniform", "zero", "nan"}) {
    AttentionCase& blocks =
        add(fmt::format("deadBlocks{}", dead_rows), {2, 2, 1, 300, 300, 32, 32});
    add_window(blocks, 300);
    blocks.optional["key_mask"] = numbers(
        {1, 300}, [](int64_t k) { return k >= 210 ? 1 : 0; }, DataType::kBool);
    blocks.attributes.set("dead_rows", std::string(dead_rows));
  }
  // Numbers of four keys in one counter, from any of the four on; in several; of keys far apart.
  const Sizes odd{2, 2, 2, 150, 171, 24, 20};
  for (const int64_t by_query : {172, 171}) {
    for (const int64_t offset : {0, 3}) {
      const auto name = [&](const char* what) {
        return fmt::format("dropout{}{}by{}", what, offset, by_query);
      };
      add_dropout(add(name(""), odd), offset, {by_query, 1});
      AttentionCase& causal = add(name("Causal"), odd);
      add_window(causal, 171);
      add_dropout(causal, offset, {by_query, 1});
    }
  }
  add_dropout(add("dropoutTransposed", odd), 5, {1, 150});
  AttentionCase& capped = add("dropoutCapped", odd);
  capped.attributes.set("softcap", 2.0F);
  add_bias(capped, {1, 4, 150, 171});
  add_dropout(capped, 1, {180, 1});
  for (const char* dead_rows : {"uniform", "zero", "unmasked", "nan"}) {
    AttentionCase& dead = add(fmt::format("dropoutDead{}", dead_rows), odd);
    add_left_padding(dead);
    add_window(dead, 150);
    add_dropout(dead, 1, {172, 1});
    dead.attributes.set("dead_rows", std::string(dead_rows));
    dead.attributes.set("dead_row_gradient", int64_t{1});
  }
  AttentionCase& large = add("largeScores", {1, 2, 1, 200, 200, 64, 64});
  large.attributes.set("scale", 4.0F);
  // Of one key the weight is 1: what comes out as gradient of query and key is rounding.
  const auto is_rounding = [](const AttentionCase& c) {
    return c.sizes.keys == 1 || c.name == "window1";
  };
  for (AttentionCase& c : cases) {
    if (is_rounding(c)) c.tolerance = 1e-4;
  }
  const size_t count = cases.size();
  for (size_t k = 0; k < count; ++k) {
    if (is_rounding(cases[k]) || cases[k].name.starts_with("additive")) continue;
    for (const auto& [type, tolerance] :
         {std::pair{DataType::kBFloat16, 2e-2}, {DataType::kFloat16, 3e-3}}) {
      AttentionCase narrow = cases[k];
      narrow.name += type == DataType::kBFloat16 ? "_bfloat16" : "_float16";
      narrow.type = type;
      narrow.tolerance = tolerance;
      for (auto& [name, tensor] : narrow.optional) {
        if (is_floating(tensor.dtype())) {
          tensor = numbers(
              tensor.shape(), [&](int64_t n) { return tensor.value_as_double(n); }, type);
        }
      }
      cases.push_back(std::move(narrow));
    }
  }
  return cases;
}

// And one whose tiles are the widest.
std::vector<AttentionCase> device_cases() {
  std::vector<AttentionCase> cases = all_cases();
  for (const DataType type : {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16}) {
    AttentionCase wide{"wide_" + std::string(ir::name_of(type)), {1, 1, 2, 90, 140, 200, 256}};
    wide.type = type;
    if (type != DataType::kFloat32) wide.tolerance = type == DataType::kBFloat16 ? 2e-2 : 3e-3;
    add_window(wide, 70);
    cases.push_back(std::move(wide));
  }
  return cases;
}

// Forward and backward in one graph; every result is an output.
std::shared_ptr<const ir::Graph> graph_of(const AttentionCase& c) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const Sizes& s = c.sizes;
  const int64_t heads = s.kv_heads * s.group;
  const auto input = [&](const std::string& name, const Shape& shape) {
    return graph->add_input(name, {c.type, shape});
  };
  const Shape output = {s.batch, heads, s.queries, s.value_width};
  const Shape rows = {s.batch, heads, s.queries};
  const std::vector<ValueId> qkv = {input("q", {s.batch, heads, s.queries, s.width}),
                                    input("k", {s.batch, s.kv_heads, s.keys, s.width}),
                                    input("v", {s.batch, s.kv_heads, s.keys, s.value_width})};
  std::vector<ValueId> optional;
  for (const char* name :
       {"bias", "begin", "end", "key_mask", "query_segment", "key_segment", "sink", "step"}) {
    const auto found = c.optional.find(name);
    optional.push_back(found == c.optional.end() ? ValueId() : build.constant(found->second, name));
  }
  const ir::Type statistics{DataType::kFloat32, rows};
  const auto run = [&](const std::string& op, std::vector<ValueId> operands,
                       const std::vector<ir::Type>& types) {
    operands.insert(operands.end(), optional.begin(), optional.end());
    while (!operands.back()) operands.pop_back();
    auto results = build.node(op, operands, types, c.attributes, std::string(ir::kAutospDomain));
    for (size_t k = 0; k < results.size(); ++k) {
      if (results[k]) graph->add_output(fmt::format("{}{}", op, k), results[k]);
    }
    return results;
  };
  const auto forward = run("Attention", qkv, {{c.type, output}, statistics, statistics});
  std::vector<ValueId> operands = {input("do", output)};
  operands.insert(operands.end(), qkv.begin(), qkv.end());
  operands.insert(operands.end(), forward.begin(), forward.end());
  std::vector<ir::Type> types;
  for (ValueId x : qkv) types.push_back(graph->type(x));
  const bool bias = optional[0] && c.bias_gradient;
  if (bias || optional[6]) types.push_back(bias ? graph->type(optional[0]) : ir::Type{});
  if (optional[6]) types.push_back(graph->type(optional[6]));
  run("AttentionGrad", operands, types);
  return graph;
}

// How results are compared: rows may be meant to be no numbers.
auto expectation(const AttentionCase& c) {
  const bool gives_nan = c.attributes.get_string("dead_rows", "none") == "nan";
  return gives_nan ? test::expect_close_or_nan : test::expect_close;
}

class AttentionKernels : public testing::TestWithParam<AttentionCase> {};

TEST_P(AttentionKernels, AgreeWithTheReference) {
  const auto graph = graph_of(GetParam());
  const Arrays feeds = test::random_feeds(*graph);
  const test::Tensors want = test::run_graph(*graph, feeds);
  const auto expect = expectation(GetParam());
  const bool drops = GetParam().attributes.has("dropout_strides");
  for (const KernelTable* kernels : available_tables(GetParam().type, drops)) {
    for (const ir::Node& node : graph->nodes()) {  // else the reference is compared with itself
      ASSERT_NE(kernels->find(*graph, node).function, nullptr) << graph->describe(node);
    }
    for (const int workers : {1, 2, 3}) {
      SCOPED_TRACE(fmt::format("{}, {} workers", kernels->device(), workers));
      RunOptions options{.threads_per_rank = workers};
      options.compile.kernels = kernels;
      const RunResult result = run_in_threads({graph}, {feeds}, options);
      expect(result.ranks[0].outputs, want, GetParam().tolerance);
    }
  }
}

// A device, and the element type of the cases that it runs.
class AttentionOnDevices : public testing::TestWithParam<std::tuple<std::string, DataType>> {
 protected:
  static void check(const AttentionCase& c, const std::shared_ptr<Backend>& backend) {
    const auto graph = graph_of(c);
    const KernelTable kernels = device_kernels(*backend);
    for (const ir::Node& node : graph->nodes()) {
      ASSERT_FALSE(kernels.find(*graph, node).on_host) << graph->describe(node);
    }
    const Arrays feeds = test::random_feeds(*graph);
    const RunResult result =
        run_in_threads({graph}, {feeds}, {.threads_per_rank = 1, .backend = backend});
    expectation(c)(result.ranks[0].outputs, test::run_graph(*graph, feeds), c.tolerance);
  }
};

TEST_P(AttentionOnDevices, AgreesWithTheReference) {
  const auto& [device, type] = GetParam();
  const test::FoundDevice found = test::find_device(device);
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  for (const AttentionCase& c : device_cases()) {
    if (c.type != type) continue;
    SCOPED_TRACE(c.name);
    check(c, found.backend);
  }
}

// Keys that no query sees may hold anything.
TEST_P(AttentionOnDevices, DoesNotLookAtHiddenKeys) {
  const auto& [device, type] = GetParam();
  const test::FoundDevice found = test::find_device(device);
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  constexpr int64_t kKeys = 150;
  constexpr int64_t kSeen = 120;  // behind them is what is beyond every query's end
  for (const char* dead_rows : {"none", "zero", "uniform"}) {
    SCOPED_TRACE(dead_rows);
    AttentionCase c{"", {1, 2, 2, 90, kKeys, 24, 16}};
    c.type = type;
    c.attributes.set("dead_rows", std::string(dead_rows));
    c.optional["end"] = numbers(
        {1, 90}, [](int64_t i) { return std::min<double>(static_cast<double>(i) + 20, kSeen); },
        DataType::kInt64);
    const bool masks = dead_rows != std::string("uniform");
    if (masks) add_left_padding(c);
    const auto graph = graph_of(c);
    Arrays feeds = test::random_feeds(*graph);
    const test::Tensors want = test::run_graph(*graph, feeds);
    for (const char* name : {"k", "v"}) {
      const Tensor given = feeds.at(name);
      const int64_t width = given.shape()[3];
      feeds[name] = numbers(
          given.shape(),
          [&](int64_t k) {
            const int64_t key = k / width % kKeys;
            const bool hidden = key >= kSeen || (masks && key < 3);
            return hidden ? std::numeric_limits<double>::quiet_NaN() : given.value_as_double(k);
          },
          type);
    }
    const RunResult result =
        run_in_threads({graph}, {feeds}, {.threads_per_rank = 1, .backend = found.backend});
    const double tolerance = type == DataType::kFloat32    ? 2e-5
                             : type == DataType::kBFloat16 ? 2e-2
                                                           : 3e-3;
    test::expect_close(result.ranks[0].outputs, want, tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, AttentionOnDevices,
                         testing::Combine(testing::ValuesIn(test::device_names()),
                                          testing::Values(DataType::kFloat32, DataType::kFloat16,
                                                          DataType::kBFloat16)),
                         [](const auto& parameters) {
                           return std::get<0>(parameters.param) + "_" +
                                  std::string(ir::name_of(std::get<1>(parameters.param)));
                         });

INSTANTIATE_TEST_SUITE_P(Cases, AttentionKernels, testing::ValuesIn(all_cases()),
                         [](const auto& parameters) { return parameters.param.name; });

// A query or key that is not a number gives no number, and leaves rows alone that do not see it.
TEST(AttentionKernels, KeepNans) {
  for (const DataType type : {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16}) {
    AttentionCase c{"", {1, 2, 2, 150, 150, 24, 16}};
    c.type = type;
    add_window(c, 150);
    const auto graph = graph_of(c);
    for (const char* where : {"q", "k"}) {
      for (const double value :
           {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        Arrays feeds = test::random_feeds(*graph);
        const Tensor& given = feeds.at(where);
        constexpr int64_t kAt = 70 * 24 + 3;  // row 70 of the first head
        feeds[where] = numbers(
            given.shape(), [&](int64_t k) { return k == kAt ? value : given.value_as_double(k); },
            type);
        const test::Tensors want = test::run_graph(*graph, feeds);
        for (const KernelTable* kernels : available_tables(type)) {
          SCOPED_TRACE(fmt::format("{}, {} of {}", kernels->device(), value, where));
          RunOptions options{.threads_per_rank = 2};
          options.compile.kernels = kernels;
          const RunResult result = run_in_threads({graph}, {feeds}, options);
          const Tensor& output = result.ranks[0].outputs.at("Attention0");
          const Tensor& expected = want.at("Attention0");
          for (int64_t k = 0; k < output.num_elements(); ++k) {
            const int64_t row = k / 16;
            ASSERT_EQ(std::isnan(output.value_as_double(k)),
                      std::isnan(expected.value_as_double(k)))
                << "row " << row;
          }
        }
      }
    }
  }
}

// The same workers, the same bits; and what was planned is what is touched.
TEST(AttentionKernels, RepeatBitForBitInPlannedMemory) {
  AttentionCase c{"", {2, 3, 2, 333, 333, 12, 16}};
  add_window(c, 333);
  const auto graph = graph_of(c);
  const Arrays feeds = test::random_feeds(*graph);
  const RunOptions options{.threads_per_rank = 2};
  const RunResult first = run_in_threads({graph}, {feeds}, options);
  const RunResult second = run_in_threads({graph}, {feeds}, options);
  for (const auto& [name, tensor] : first.ranks[0].outputs) {
    EXPECT_TRUE(tensor.identical(second.ranks[0].outputs.at(name))) << name;
  }
  EXPECT_LE(first.ranks[0].arena_touched, first.ranks[0].planned.arena + 4096);
}

// Every worker runs, each index once, and again after a rest.
TEST(Workers, ShareOutEveryIndexOnce) {
  for (const int count : {1, 2, 5}) {
    Workers workers(count);
    EXPECT_EQ(workers.count(), count);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> visits(37);
      workers.for_each(37, [&](int worker, int64_t k) {
        EXPECT_LT(worker, count);
        ++visits[static_cast<size_t>(k)];
      });
      for (const auto& n : visits) EXPECT_EQ(n, 1);
      std::vector<std::atomic<int>> ran(static_cast<size_t>(count));
      workers.run([&](int worker) { ++ran[static_cast<size_t>(worker)]; });
      for (const auto& n : ran) EXPECT_EQ(n, 1);
    }
  }
}

}  // namespace
}  // namespace autosp::executor
