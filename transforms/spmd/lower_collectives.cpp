#include "transforms/spmd/lower_collectives.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "ir/operator_traits.h"
#include "ir/rewriter.h"
#include "transforms/spmd/box_grid.h"

namespace autosp::transforms {

using ir::Builder;
using ir::DataType;
using ir::Node;
using ir::Shape;

namespace {

Shape with_front(int64_t extent, const Shape& shape) {
  Shape result = {extent};
  result.insert(result.end(), shape.begin(), shape.end());
  return result;
}

Shape without_front(const Shape& shape) { return {shape.begin() + 1, shape.end()}; }

// One collective on its way into a dialect.
struct Call {
  Builder& build;
  const Node& node;            // what is lowered
  std::vector<int64_t> group;  // global ranks

  int64_t members() const { return static_cast<int64_t>(group.size()); }

  // The node that communicates: it has the name that the manifest lists.
  ValueId emit(std::string op, ValueId x, Shape shape, ir::Attributes attributes,
               std::string domain) const {
    ir::Graph& graph = build.graph();
    const NodeId id =
        graph.add_node(std::move(op), {x}, {ir::Type{build.dtype(x), std::move(shape)}},
                       std::move(attributes), std::move(domain), {node.name}, node.name);
    return graph.node(id).outputs[0];
  }
};

// What a runtime offers. Blocks are the entries of axis 0, one per member.
class Dialect {
 public:
  virtual ~Dialect() = default;
  virtual std::string name() const = 0;  // as --dialect has it
  // Throws Error for an element type or group that its operators do not take.
  virtual void check(const Call& call, const ir::Type& type) const = 0;
  virtual ValueId all_reduce(const Call& call, ValueId x) const = 0;
  // The members' x joined along `axis`.
  virtual ValueId all_gather(const Call& call, ValueId x, size_t axis) const = 0;
  virtual ValueId all_to_all(const Call& call, ValueId blocks) const = 0;
  // The sum of this member's block over the members: the blocks' shape without axis 0.
  virtual ValueId reduce_scatter(const Call& call, ValueId blocks) const = 0;
};

Error refusal(const Dialect& dialect, const Node& node, const std::string& what) {
  return Error("node '{}': --dialect {} has no {} for it: {}", node.name, dialect.name(), node.op,
               what);
}

void check_type(const Dialect& dialect, const Node& node, DataType type,
                const std::vector<DataType>& taken) {
  if (std::ranges::find(taken, type) != taken.end()) return;
  std::vector<std::string_view> names;
  for (DataType each : taken) names.push_back(ir::name_of(each));
  throw refusal(dialect, node, fmt::format("its operand is {}", ir::name_of(type)))
      .note(fmt::format("that operator takes {}", fmt::join(names, ", ")))
      .help("export the model in one of these types, or shard it with --dialect autosp");
}

// onnxruntime/core/graph/contrib_ops/collective_defs.cc. One communicator, of all ranks.
class OnnxRuntime : public Dialect {
 public:
  explicit OnnxRuntime(int64_t ranks) : ranks_(ranks) {}

  std::string name() const override { return "ort"; }

  void check(const Call& call, const ir::Type& type) const override {
    std::vector<DataType> types = {DataType::kFloat16, DataType::kFloat32, DataType::kFloat64};
    const bool sums = call.node.op == "AllReduce" || call.node.op == "ReduceScatter";
    if (!sums) types.insert(types.end(), {DataType::kInt64, DataType::kBool});
    check_type(*this, call.node, type.dtype, types);
    std::vector<int64_t> everyone(static_cast<size_t>(ranks_));
    std::iota(everyone.begin(), everyone.end(), 0);
    if (call.group == everyone) return;
    throw refusal(*this, call.node,
                  fmt::format("it is of ranks {} of {}", fmt::join(call.group, ", "), ranks_))
        .note("ONNX Runtime's collectives know one group, that of all ranks")
        .help(
            "split over --sp alone, so that it divides the KV heads (inspect lists how), or use "
            "--dialect tensorrt or autosp");
  }

  ValueId all_reduce(const Call& call, ValueId x) const override {
    return emit(call, "AllReduce", x, call.build.shape(x), {});
  }

  // `axis` is always written: schema and kernel differ in what they take when it is not.
  ValueId all_gather(const Call& call, ValueId x, size_t axis) const override {
    Shape shape = call.build.shape(x);
    shape[axis] *= call.members();
    return emit(call, "AllGather", x, shape,
                {{"axis", static_cast<int64_t>(axis)}, {"group_size", call.members()}});
  }

  ValueId all_to_all(const Call& call, ValueId blocks) const override {
    return emit(call, "AllToAll", blocks, call.build.shape(blocks),
                {{"group_size", call.members()}});
  }

  // It has none; exchanged and added here, the terms cost what a reduce-scatter does.
  ValueId reduce_scatter(const Call& call, ValueId blocks) const override {
    return call.build.reduce_sum(all_to_all(call, blocks), {0}, false);
  }

 private:
  static ValueId emit(const Call& call, const char* op, ValueId x, const Shape& shape,
                      ir::Attributes attributes) {
    return call.emit(op, x, shape, std::move(attributes), std::string(ir::kMicrosoftDomain));
  }

  int64_t ranks_;
};

// The operator reference of TensorRT 11, "DistCollective", and the attributes as Polygraphy writes
// them. Gathers and scatters along the first axis only.
class TensorRt : public Dialect {
 public:
  std::string name() const override { return "tensorrt"; }

  void check(const Call& call, const ir::Type& type) const override {
    check_type(*this, call.node, type.dtype,
               {DataType::kFloat16, DataType::kBFloat16, DataType::kFloat32, DataType::kInt32,
                DataType::kInt64});
  }

  ValueId all_reduce(const Call& call, ValueId x) const override {
    return emit(call, "all_reduce", "sum", x, call.build.shape(x));
  }

  ValueId all_gather(const Call& call, ValueId x, size_t axis) const override {
    Builder& build = call.build;
    const Shape piece = build.shape(x);
    if (axis == 0) return gather_front(call, x);
    const ValueId pieces = gather_front(call, build.reshape(x, with_front(1, piece)));
    Shape counts(piece.size(), 1);
    counts[axis] = call.members();
    return from_blocks(build, pieces, {.block = piece, .counts = counts, .axes = {axis}});
  }

  ValueId all_to_all(const Call& call, ValueId blocks) const override {
    return emit(call, "all_to_all", "none", blocks, call.build.shape(blocks));
  }

  ValueId reduce_scatter(const Call& call, ValueId blocks) const override {
    const Shape block = without_front(call.build.shape(blocks));
    return call.build.reshape(emit(call, "reduce_scatter", "sum", blocks, with_front(1, block)),
                              block);
  }

 private:
  static ValueId gather_front(const Call& call, ValueId x) {
    Shape shape = call.build.shape(x);
    shape[0] *= call.members();
    return emit(call, "all_gather", "none", x, shape);
  }

  static ValueId emit(const Call& call, const char* operation, const char* reduction, ValueId x,
                      const Shape& shape) {
    return call.emit("DistCollective", x, shape,
                     {{"collective_operation", std::string(operation)},
                      {"reduce_op", std::string(reduction)},
                      {"root", int64_t{-1}},
                      {"nb_rank", call.members()},
                      {"group_size", call.members()},
                      {"groups", call.group}},
                     "");
  }
};

// --- From our collectives to a dialect's.

bool is_even(const std::vector<int64_t>& sizes) {
  return std::ranges::adjacent_find(sizes, std::not_equal_to()) == sizes.end();
}

Error uneven(const Dialect& dialect, const Node& node, const std::string& pieces) {
  return refusal(dialect, node, "its pieces are not of one size")
      .note(fmt::format("{}; that runtime moves equal blocks", pieces))
      .help(
          "give lengths that divide: bind the sequence with --dim to a multiple of --sp that the "
          "model's windows keep even, let --sp divide the heads, or use --dialect autosp");
}

// Pieces of different sizes travel at the size of the largest; what is too much is cut away.
ValueId gather(const Call& call, const Dialect& dialect, ValueId x) {
  Builder& build = call.build;
  const std::vector<int64_t> sizes = call.node.attributes.get_ints("sizes");
  const auto axis = static_cast<size_t>(call.node.attributes.get_int("axis", 0));
  if (is_even(sizes)) return dialect.all_gather(call, x, axis);
  const int64_t largest = std::ranges::max(sizes);
  std::vector<int64_t> before(build.rank(x), 0);
  std::vector<int64_t> after(build.rank(x), 0);
  after[axis] = largest - build.shape(x)[axis];
  const ValueId joined = dialect.all_gather(call, build.pad(x, before, after), axis);
  std::vector<ValueId> pieces;
  for (size_t k = 0; k < sizes.size(); ++k) {
    const int64_t begin = static_cast<int64_t>(k) * largest;
    if (sizes[k] == 0) continue;
    pieces.push_back(build.slice(joined, static_cast<int64_t>(axis), begin, begin + sizes[k]));
  }
  return build.concat(pieces, static_cast<int64_t>(axis));
}

ValueId scatter_sum(const Call& call, const Dialect& dialect, ValueId x) {
  const std::vector<int64_t> sizes = call.node.attributes.get_ints("sizes");
  const auto axis = static_cast<size_t>(call.node.attributes.get_int("axis", 0));
  if (!is_even(sizes)) {
    throw uneven(
        dialect, call.node,
        fmt::format("its members keep {} entries of axis {}", fmt::join(sizes, ", "), axis));
  }
  Shape block = call.build.shape(x);
  block[axis] = sizes[0];
  Shape counts(block.size(), 1);
  counts[axis] = call.members();
  const BoxGrid grid{.block = block, .counts = counts, .axes = {axis}};
  return dialect.reduce_scatter(call, to_blocks(call.build, x, grid));
}

// "[3, 2, 10], [3, 2, 10], [3, 1, 10]"
std::string boxes(const std::vector<int64_t>& extents, int64_t members) {
  const auto rank = static_cast<int64_t>(extents.size()) / members;
  std::vector<std::string> texts;
  for (auto box = extents.begin(); box != extents.end(); box += rank) {
    texts.push_back(ir::to_string(Shape(box, box + rank)));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

ValueId exchange(const Call& call, const Dialect& dialect, ValueId x) {
  const ir::Attributes& attributes = call.node.attributes;
  const Shape shape = attributes.get_ints("shape");
  const auto sent = find_box_grid(call.build.shape(x), attributes.get_ints("send_begin"),
                                  attributes.get_ints("send_extent"));
  const auto received =
      find_box_grid(shape, attributes.get_ints("recv_begin"), attributes.get_ints("recv_extent"));
  if (!sent || !received) {
    throw uneven(dialect, call.node,
                 fmt::format("it sends boxes of {} and receives boxes of {}",
                             boxes(attributes.get_ints("send_extent"), call.members()),
                             boxes(attributes.get_ints("recv_extent"), call.members())));
  }
  const ValueId blocks = dialect.all_to_all(call, to_blocks(call.build, x, *sent));
  return from_blocks(call.build,
                     call.build.reshape(blocks, with_front(call.members(), received->block)),
                     *received);
}

ValueId lower(const Call& call, const Dialect& dialect, ValueId x) {
  if (call.node.op == "AllReduce") return dialect.all_reduce(call, x);
  if (call.node.op == "AllGather") return gather(call, dialect, x);
  if (call.node.op == "ReduceScatter") return scatter_sum(call, dialect, x);
  AUTOSP_CHECK(call.node.op == "AllToAll", "collective {}", call.node.op);
  return exchange(call, dialect, x);
}

}  // namespace

ir::Graph lower_collectives(const ir::Graph& graph, CollectiveDialect kind, int64_t ranks) {
  std::unique_ptr<Dialect> dialect;
  if (kind == CollectiveDialect::kOnnxRuntime) {
    dialect = std::make_unique<OnnxRuntime>(ranks);
  } else {
    dialect = std::make_unique<TensorRt>();
  }
  return ir::rewrite_nodes(graph, [&](ir::Rewriter& rewriter, const Node& node) {
    if (!ir::is_collective(node)) return false;
    Builder& build = rewriter.build();
    const Call call{build, node, node.attributes.get_ints("group")};
    dialect->check(call, graph.type(node.inputs[0]));
    const size_t first = build.graph().nodes().size();
    rewriter.map(node.outputs[0], lower(call, *dialect, rewriter.mapped(node.inputs[0])));
    for (size_t n = first; n < build.graph().nodes().size(); ++n) {
      build.graph().set_phase(NodeId(n), node.phase);
    }
    return true;
  });
}

}  // namespace autosp::transforms
