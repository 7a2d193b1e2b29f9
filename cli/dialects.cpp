#include "dialects.h"

#include <algorithm>

#include "base/error.h"
#include "ir/rewriter.h"
#include "transforms/decompose_attention.h"
#include "transforms/decompose_draws.h"
#include "transforms/pipeline.h"
#include "transforms/recompute/barriers.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/emulate.h"
#include "transforms/spmd/lower_collectives.h"
#include "transforms/spmd/thread_tokens.h"

namespace autosp::cli {

namespace {

using transforms::BarrierForm;
using transforms::CollectiveDialect;

constexpr const char* kEmulatedFile = "emulated.onnx";

// By Dialect: between "rank_<k>" and ".onnx".
constexpr std::string_view kInfixes[] = {"", ".ort", ".tensorrt"};

// What was copied for each reader, to be planned for it alone, is computed once again where the
// copies turned out alike.
ir::Graph without_copies(const ir::Graph& graph) {
  return transforms::run_passes(graph, {.passes = {"eliminate_common_subexpressions"}});
}

}  // namespace

const std::vector<std::string>& dialect_names() {
  static const std::vector<std::string> kNames = {"autosp", "ort", "tensorrt", "standard"};
  return kNames;
}

Dialect parse_dialect(const std::string& name) {
  const auto found = std::ranges::find(dialect_names(), name);
  AUTOSP_CHECK(found != dialect_names().end(), "dialect '{}'", name);
  return static_cast<Dialect>(found - dialect_names().begin());
}

std::string graph_file(Dialect dialect, int64_t rank) {
  if (dialect == Dialect::kStandard) return kEmulatedFile;
  return fmt::format("rank_{}{}.onnx", rank, kInfixes[static_cast<size_t>(dialect)]);
}

bool is_graph_file(const std::string& name) {
  if (name == kEmulatedFile || name == kAnnotatedFile) return true;
  constexpr std::string_view kBegin = "rank_";
  if (!name.starts_with(kBegin)) return false;
  const size_t end = name.find_first_not_of("0123456789", kBegin.size());
  if (end == kBegin.size() || end == std::string::npos) return false;
  return std::ranges::any_of(kInfixes, [&](std::string_view infix) {
    return name.substr(end) == std::string(infix) + ".onnx";
  });
}

namespace {

ir::Graph written_graph(const transforms::SpmdProgram& program, int64_t rank) {
  return without_copies(transforms::emit_rank(program, rank));
}

// A window that is, on this rank, all of its operand.
bool is_whole(const ir::Graph& graph, const ir::Node& node) {
  const auto all = [&](size_t k, int64_t wanted) {
    const auto values = graph.constant_ints(node.inputs[k]);
    return values && std::ranges::all_of(*values, [=](int64_t value) { return value == wanted; });
  };
  if (node.is("Pad")) return all(1, 0);
  return node.is("Slice") && graph.type(node.inputs[0]) == graph.type(node.outputs[0]) &&
         all(1, 0) && (node.inputs.size() < 5 || all(4, 1));
}

}  // namespace

// Of a whole window, which the file keeps so that other lengths have the same operators, reading
// makes an Identity, and of that no copy is made.
ir::Graph rank_graph(const transforms::SpmdProgram& program, int64_t rank) {
  return ir::rewrite_nodes(written_graph(program, rank), [](ir::Rewriter& rewriter,
                                                            const ir::Node& node) {
    const ir::Graph& from = rewriter.from();
    if (!is_whole(from, node)) return false;
    const ValueId result = node.outputs[0];
    ir::Graph& to = rewriter.to();
    const NodeId id = to.add_node("Identity", {rewriter.mapped(node.inputs[0])},
                                  {from.type(result)}, {}, "", {from.name_of(result)}, node.name);
    to.set_origin(id, node.origin);
    to.set_phase(id, node.phase);
    rewriter.map(result, to.node(id).outputs[0]);
    return true;
  });
}

namespace {

ir::Graph with_collectives(const transforms::SpmdProgram& program, Dialect dialect, int64_t rank) {
  switch (dialect) {
    case Dialect::kAutosp:
      return written_graph(program, rank);
    case Dialect::kOnnxRuntime:
    case Dialect::kTensorRt: {
      const auto kind = dialect == Dialect::kTensorRt ? CollectiveDialect::kTensorRt
                                                      : CollectiveDialect::kOnnxRuntime;
      return transforms::lower_collectives(written_graph(program, rank), kind,
                                           program.plan->mesh.size());
    }
    case Dialect::kStandard:
      return without_copies(transforms::emulate(program));
  }
  internal_error(__FILE__, __LINE__, fmt::format("dialect {}", static_cast<int>(dialect)));
}

}  // namespace

ir::Graph dialect_graph(const transforms::SpmdProgram& program, Dialect dialect, int64_t rank,
                        const transforms::SpmdProgram* decided) {
  std::optional<ir::Graph> sizes;
  if (decided != nullptr) sizes = with_collectives(*decided, dialect, rank);
  const bool own = dialect == Dialect::kAutosp;
  ir::Graph graph = transforms::insert_recompute_barriers(
      with_collectives(program, dialect, rank),
      own ? BarrierForm::kOperator : BarrierForm::kStandard, sizes ? &*sizes : nullptr);
  return own ? transforms::thread_tokens(graph) : graph;
}

std::optional<ir::Graph> own_operator_body(const ir::Graph& graph, const ir::Node& node) {
  for (const auto& body_of :
       {transforms::attention_body, transforms::draw_body, transforms::barrier_body}) {
    if (auto body = body_of(graph, node)) return body;
  }
  return std::nullopt;
}

}  // namespace autosp::cli
