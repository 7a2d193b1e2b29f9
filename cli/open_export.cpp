#include "open_export.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "transforms/open_length/join_lengths.h"
#include "transforms/open_length/same_graph.h"

namespace autosp::cli {

using transforms::GraphAtLength;
using transforms::LengthForm;
using transforms::OpenGraph;

OpenGraph join_graphs(const std::vector<int64_t>& units, const std::vector<ir::Graph>& graphs,
                      const transforms::OpenLength& open) {
  std::vector<GraphAtLength> views;
  for (size_t k = 0; k < units.size(); ++k) views.push_back({units[k], &graphs[k]});
  return transforms::join_lengths(views, open);
}

namespace {

// Names of dimensions, and bodies of attention for every length.
class OpenExport {
 public:
  OpenExport(std::vector<int64_t> units, std::vector<ir::Graph> graphs, transforms::OpenLength open)
      : units_(std::move(units)), graphs_(std::move(graphs)), open_(std::move(open)) {
    for (size_t n = 0; n < graphs_[0].nodes().size(); ++n) {
      nodes_[graphs_[0].nodes()[n].name] = NodeId(n);
    }
  }

  OpenGraph joined() const { return join_graphs(units_, graphs_, open_); }
  size_t lengths() const { return units_.size(); }
  const ir::Graph& graph(size_t k) const { return graphs_[k]; }
  int64_t length(size_t k) const { return units_[k] * open_.multiple; }
  const transforms::OpenLength& open() const { return open_; }

  // The body of a function for a node of the joined graph.
  std::optional<ir::Graph> body(const ir::Node& node) const {
    const auto at = nodes_.find(node.name);
    if (at == nodes_.end()) return std::nullopt;
    std::vector<ir::Graph> bodies;
    for (const ir::Graph& graph : graphs_) {
      auto one = own_operator_body(graph, graph.node(at->second));
      if (!one) return std::nullopt;
      bodies.push_back(std::move(*one));
    }
    return join_graphs(units_, bodies, open_).graph;
  }

 private:
  std::vector<int64_t> units_;
  std::vector<ir::Graph> graphs_;
  transforms::OpenLength open_;
  std::map<std::string, NodeId> nodes_;  // of every graph
};

ir::Graph read_at(const std::filesystem::path& file, const ir::Graph& graph) {
  onnx_io::ImportOptions options;
  for (ValueId input : graph.inputs()) {
    options.input_shapes[graph.name_of(input)] = graph.shape(input);
  }
  return onnx_io::import_model(file, options);
}

void check_written(const OpenExport& source, const std::filesystem::path& file,
                   const onnx_io::ExportOptions& options) {
  onnx_io::ExportOptions concrete = options;
  concrete.dim_name = nullptr;
  concrete.function_body = nullptr;
  for (size_t k = 0; k < source.lengths(); ++k) {
    const ir::Graph expected = onnx_io::through_file(source.graph(k), file.parent_path(), concrete);
    const auto difference = transforms::first_difference(expected, read_at(file, source.graph(k)));
    if (!difference) continue;
    throw Error(
        "'{}' cannot stay open: at {}={}, {} of '{}' is not that of the graph that is "
        "sharded for this length",
        source.open().dim, source.open().dim, source.length(k), *difference,
        file.filename().string())
        .note(
            "the graphs for all lengths are compared with those for single ones before they are "
            "put in place")
        .help(fmt::format("give the length: --dim {}=N", source.open().dim));
  }
}

}  // namespace

WrittenGraph open_graph(std::vector<int64_t> units, std::vector<ir::Graph> graphs,
                        const transforms::OpenLength& open) {
  const auto source = std::make_shared<const OpenExport>(std::move(units), std::move(graphs), open);
  OpenGraph joined = source->joined();
  const auto shapes =
      std::make_shared<const std::vector<std::vector<LengthForm>>>(std::move(joined.shapes));
  WrittenGraph result{
      .graph = std::move(joined.graph), .options = {}, .sharding = nullptr, .check = {}};
  result.options.dim_name = [shapes, open](ValueId value, size_t axis) {
    const LengthForm& form = (*shapes)[value.index()][axis];
    return form.is_constant() ? std::string() : transforms::to_string(form, open);
  };
  result.options.function_body = [source](const ir::Graph&, const ir::Node& node) {
    return source->body(node);
  };
  result.check = [source](const std::filesystem::path& file,
                          const onnx_io::ExportOptions& options) {
    check_written(*source, file, options);
  };
  return result;
}

}  // namespace autosp::cli
