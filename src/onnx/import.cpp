// ModelProto -> ir::Graph: one walk over the nodes that inlines functions, normalises operators,
// infers types and evaluates shape arithmetic as it goes.
#include <onnx/defs/function.h>
#include <onnx/defs/schema.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "ir/gradient_names.h"
#include "ir/rewriter.h"
#include "onnx/dims.h"
#include "onnx/emitter.h"
#include "onnx/functions.h"
#include "onnx/model.h"
#include "onnx/node_order.h"
#include "onnx/proto.h"

namespace autosp::onnx_io {

namespace {

// What is written: newer operator sets are refused by today's runtimes. A model at a newer one, up
// to what libonnx knows, is read if none of its operators has changed since.
constexpr int64_t kNewestOpset = 26;
constexpr int64_t kNewestReadOpset = 28;
constexpr int64_t kOldestOpset = 7;

// Exporters put whatever is large into external data. Parameters there are never read; shapes,
// axes, index grids, masks and zeros to scatter into are, since what can be split depends on them.
constexpr int64_t kReadIntegerBytes = int64_t{64} << 20;
constexpr int64_t kReadFloatBytes = int64_t{1} << 20;

// Operators that ONNX defines by a function but that stay as they are: the planner and the
// executor know them, or a later pass decomposes them with care for their numerics.
bool stays(const std::string& op) {
  static const std::unordered_set<std::string> kOps = {"Bernoulli",
                                                       "CastLike",
                                                       "Clip",
                                                       "Gelu",
                                                       "Elu",
                                                       "LeakyRelu",
                                                       "LayerNormalization",
                                                       "GreaterOrEqual",
                                                       "LessOrEqual",
                                                       "LogSoftmax",
                                                       "Mish",
                                                       "Range",
                                                       "NegativeLogLikelihoodLoss",
                                                       "Relu",
                                                       "Softmax",
                                                       "SoftmaxCrossEntropyLoss",
                                                       "Softplus"};
  return kOps.contains(op);
}

// What names mean in a graph or a function body.
struct Scope {
  const Scope* parent = nullptr;  // of a subgraph: the graph around it
  std::unordered_map<std::string, ValueId> values;
  std::unordered_map<std::string, std::string> renamed;  // results that the caller names
  std::map<std::string, int64_t> opsets;
  std::map<std::string, onnx::AttributeProto> attributes;  // a function's
  std::string prefix;                                      // of names made in a function
  std::vector<std::string> calls;                          // functions being inlined

  std::optional<ValueId> find(const std::string& name) const {
    const auto found = values.find(name);
    if (found != values.end()) return found->second;
    return parent != nullptr ? parent->find(name) : std::nullopt;
  }
};

class Importer {
 public:
  Importer(onnx::ModelProto model, std::filesystem::path folder, const ImportOptions& options)
      : model_(std::move(model)),
        folder_(std::move(folder)),
        emitter_(graph_),
        dims_(fed_inputs(model_.graph()), options),
        parameters_(options.parameters) {
    graph_.declared_parameters = options.parameters;
  }

  ir::Graph run();

 private:
  std::map<std::string, int64_t> opsets_of(const auto& imports) const;
  void check_opset();
  void add_inputs(Scope& scope);
  void add_initializers(Scope& scope, onnx::GraphProto& graph);
  void add_initializer(Scope& scope, onnx::TensorProto& tensor);
  void add_outputs(const Scope& scope);
  void collect_declared_types();
  void collect_parameters();

  void import_nodes(Scope& scope, const NodeList& nodes);
  void import_node(Scope& scope, const onnx::NodeProto& node);
  void import_branch(Scope& scope, const onnx::NodeProto& node);
  Operation resolve(const Scope& scope, const onnx::NodeProto& node) const;
  ValueId resolve_name(const Scope& scope, const onnx::NodeProto& node,
                       const std::string& name) const;
  std::optional<onnx::FunctionProto> function_of(const onnx::NodeProto& node,
                                                 const Operation& operation) const;
  void inline_function(Scope& scope, const onnx::NodeProto& node, const Operation& operation,
                       const onnx::FunctionProto& function);
  bool reads_external_data(const std::string& name, const ir::Type& type) const;

  onnx::ModelProto model_;
  std::filesystem::path folder_;
  ir::Graph graph_;
  Emitter emitter_;
  DimBinder dims_;
  std::unordered_map<std::string, ir::Type> declared_;
  std::unordered_set<std::string> parameters_;  // declared, or by their gradients' names
};

std::string normalized_domain(const std::string& domain) {
  return domain == "ai.onnx" ? "" : domain;
}

std::map<std::string, int64_t> Importer::opsets_of(const auto& imports) const {
  std::map<std::string, int64_t> opsets;
  for (const auto& import : imports) {
    opsets[normalized_domain(import.domain())] = import.version();
  }
  return opsets;
}

void Importer::check_opset() {
  const auto opsets = opsets_of(model_.opset_import());
  const auto found = opsets.find("");
  const int64_t version = found == opsets.end() ? ir::kOpset : found->second;
  if (version < kOldestOpset) {
    throw Error("the model uses operator set {}; the oldest supported one is {}", version,
                kOldestOpset)
        .help("export the model again with operator set 13 or later");
  }
  if (version > kNewestReadOpset) {
    throw Error("the model uses operator set {}; the newest supported one is {}", version,
                kNewestReadOpset)
        .help("export the model again with an older operator set");
  }
  for (const auto& node : model_.graph().node()) {
    if (version <= kNewestOpset || !node.domain().empty()) continue;
    const auto* schema =
        onnx::OpSchemaRegistry::Schema(node.op_type(), static_cast<int>(version), "");
    if (schema == nullptr || schema->SinceVersion() <= kNewestOpset) continue;
    throw Error("node '{}': {} was redefined in operator set {}; known is that of {}", node.name(),
                node.op_type(), schema->SinceVersion(), kNewestOpset)
        .help("export the model again with operator set 26 or older");
  }
  graph_.opset = std::clamp(version, ir::kOpset, kNewestOpset);
}

void Importer::collect_declared_types() {
  const auto collect = [&](const auto& values) {
    for (const auto& value : values) {
      if (auto type = dims_.bind(value)) declared_.emplace(value.name(), *std::move(type));
    }
  };
  collect(model_.graph().value_info());
  collect(model_.graph().output());
}

// A parameter's gradient is an output, or is added into an input of its name.
void Importer::collect_parameters() {
  const auto collect = [&](std::string_view name) {
    for (const std::string_view stem : ir::gradient_stems(name)) parameters_.emplace(stem);
  };
  for (const auto& output : model_.graph().output()) collect(output.name());
  for (const auto& input : model_.graph().input()) {
    if (const auto gradient = ir::gradient_of_buffer(input.name())) collect(*gradient);
  }
}

void Importer::add_inputs(Scope& scope) {
  for (const auto* input : fed_inputs(model_.graph())) {
    const auto type = dims_.bind(*input);
    AUTOSP_CHECK(type.has_value(), "input '{}'", input->name());
    if (graph_.find(input->name())) throw Error("two inputs are named '{}'", input->name());
    scope.values[input->name()] = graph_.add_input(input->name(), *type);
  }
}

bool Importer::reads_external_data(const std::string& name, const ir::Type& type) const {
  if (!ir::is_floating(type.dtype)) return type.num_bytes() <= kReadIntegerBytes;
  return !parameters_.contains(name) && type.num_bytes() <= kReadFloatBytes;
}

void Importer::add_initializer(Scope& scope, onnx::TensorProto& tensor) {
  const std::string where = fmt::format("initializer '{}'", tensor.name());
  const ir::Type type = tensor_type(tensor, where);
  const std::string name = graph_.fresh_name(scope.prefix + tensor.name());
  if (scope.values.contains(tensor.name())) {
    throw Error("two initializers are named '{}'", tensor.name());
  }
  ValueId& value = scope.values[tensor.name()];
  if (tensor.data_location() == onnx::TensorProto::EXTERNAL) {
    const ir::ExternalData data = external_data(tensor, type, folder_);
    if (reads_external_data(tensor.name(), type)) {
      value = graph_.add_named_constant(name, read_external(data, type, folder_));
    } else {
      value = graph_.add_external(name, type, data);
    }
    return;
  }
  value = graph_.add_named_constant(name, to_tensor(tensor, where));
  tensor.clear_raw_data();
  emitter_.reuse(value);
  const bool may_be_trained = type.num_elements() > 1 || parameters_.contains(tensor.name());
  if (ir::is_floating(type.dtype) && may_be_trained) emitter_.mark_parameter(value);
}

void Importer::add_initializers(Scope& scope, onnx::GraphProto& graph) {
  if (graph.sparse_initializer_size() > 0) {
    throw Error("initializer '{}' is sparse, which is not supported",
                graph.sparse_initializer(0).values().name());
  }
  for (auto& tensor : *graph.mutable_initializer()) add_initializer(scope, tensor);
}

void Importer::add_outputs(const Scope& scope) {
  for (const auto& output : model_.graph().output()) {
    const auto value = scope.find(output.name());
    if (!value) {
      throw Error("nothing computes the graph output '{}'", output.name())
          .help("the model is incomplete: export it again");
    }
    graph_.add_output(output.name(), *value);
  }
}

ir::Graph Importer::run() {
  check_opset();
  graph_.name = model_.graph().name();
  for (const auto& entry : model_.metadata_props()) graph_.metadata[entry.key()] = entry.value();
  collect_declared_types();
  collect_parameters();
  Scope scope;
  scope.opsets = opsets_of(model_.opset_import());
  add_inputs(scope);
  add_initializers(scope, *model_.mutable_graph());
  import_nodes(scope, model_.graph().node());
  add_outputs(scope);
  ir::Graph result = ir::without_dead_nodes(graph_);
  ir::verify(result);
  return result;
}

void Importer::import_nodes(Scope& scope, const NodeList& nodes) {
  const auto known = [&](const std::string& name) { return scope.find(name).has_value(); };
  for (int n : node_order(nodes, known)) import_node(scope, nodes[n]);
}

ValueId Importer::resolve_name(const Scope& scope, const onnx::NodeProto& node,
                               const std::string& name) const {
  if (name.empty()) return {};
  const auto value = scope.find(name);
  if (!value) throw Error("node '{}' reads '{}', which nothing defines", describe(node), name);
  return *value;
}

Operation Importer::resolve(const Scope& scope, const onnx::NodeProto& node) const {
  Operation operation{.name = node.name().empty() ? "" : scope.prefix + node.name(),
                      .domain = normalized_domain(node.domain()),
                      .op = node.op_type(),
                      .inputs = {},
                      .results = {}};
  if (operation.domain == ir::kAutospDomain) operation.op = operator_of_function(operation.op);
  const auto version = scope.opsets.find(operation.domain);
  if (version != scope.opsets.end()) operation.version = version->second;
  for (const std::string& input : node.input()) {
    operation.inputs.push_back(resolve_name(scope, node, input));
  }
  while (!operation.inputs.empty() && !operation.inputs.back()) operation.inputs.pop_back();
  for (const std::string& output : node.output()) {
    const auto renamed = scope.renamed.find(output);
    operation.results.push_back(output.empty()                   ? ""
                                : renamed != scope.renamed.end() ? renamed->second
                                                                 : scope.prefix + output);
    const auto declared = declared_.find(operation.results.back());
    operation.declared.push_back(declared == declared_.end() ? std::nullopt
                                                             : std::optional(declared->second));
  }
  for (const auto& entry : node.metadata_props()) {
    if (entry.key() == kOriginKey) operation.origin = entry.value();
    if (entry.key() == kPhaseKey) operation.phase = entry.value();
  }
  for (const auto& attribute : node.attribute()) {
    if (attribute.has_g() || attribute.graphs_size() > 0) continue;
    if (attribute.ref_attr_name().empty()) {
      operation.attributes.set(attribute.name(), to_attribute(attribute, describe(node)));
      continue;
    }
    const auto actual = scope.attributes.find(attribute.ref_attr_name());
    if (actual == scope.attributes.end()) continue;
    operation.attributes.set(attribute.name(), to_attribute(actual->second, describe(node)));
  }
  return operation;
}

// Of a collective: here, the file's order is kept without (transforms/spmd/thread_tokens.h). The
// next one's operand, which is dropped as well, still has to be something. Operand 2 stays.
void drop_tokens(Operation& operation) {
  if (operation.inputs.size() > 1) operation.inputs[1] = {};
  if (!operation.input(2)) operation.inputs.resize(std::min<size_t>(operation.inputs.size(), 1));
  operation.results.resize(std::min<size_t>(operation.results.size(), 1));
  operation.declared.resize(operation.results.size());
}

void Importer::import_node(Scope& scope, const onnx::NodeProto& node) {
  const std::string domain = normalized_domain(node.domain());
  if (domain.empty() && node.op_type() == "If") return import_branch(scope, node);
  if (domain.empty() && (node.op_type() == "Loop" || node.op_type() == "Scan")) {
    throw Error("node '{}' is control flow, which is not supported", describe(node))
        .help("export the model with its loops unrolled");
  }
  Operation operation = resolve(scope, node);
  // Written for other runtimes: here, what is recomputed stays so
  // (transforms/recompute/barriers.h).
  if (domain == ir::kAutospDomain && operation.op == "RecomputeBarrier") {
    scope.values[node.output(0)] = operation.input(0);
    return;
  }
  if (domain == ir::kAutospDomain && operation.attributes.has("group")) drop_tokens(operation);
  if (const auto function = function_of(node, operation)) {
    return inline_function(scope, node, operation, *function);
  }
  check_attributes(operation);
  const auto values = emit_normal_form(emitter_, operation);
  for (int k = 0; k < node.output_size(); ++k) {
    if (node.output(k).empty()) continue;
    scope.values[node.output(k)] = values[std::min(static_cast<size_t>(k), values.size() - 1)];
  }
}

// An If whose condition is known is the branch that it takes.
void Importer::import_branch(Scope& scope, const onnx::NodeProto& node) {
  const ValueId condition = resolve_name(scope, node, node.input(0));
  if (!graph_.is_constant(condition)) {
    throw Error("node '{}' is control flow that depends on data ('{}'), which is not supported",
                describe(node), node.input(0))
        .help("export the model without data-dependent branches");
  }
  const bool taken = graph_.constant(condition).value_as_double(0) != 0;
  const auto branch = std::ranges::find(node.attribute(), taken ? "then_branch" : "else_branch",
                                        &onnx::AttributeProto::name);
  if (branch == node.attribute().end() || branch->g().output_size() != node.output_size()) {
    throw Error("node '{}' lacks a branch with {} results", describe(node), node.output_size());
  }
  onnx::GraphProto body = branch->g();
  Scope inner;
  inner.parent = &scope;
  inner.opsets = scope.opsets;
  inner.attributes = scope.attributes;
  inner.calls = scope.calls;
  inner.prefix = fmt::format("{}{}/", scope.prefix, node.output(0));
  add_initializers(inner, body);
  import_nodes(inner, body.node());
  for (int k = 0; k < node.output_size(); ++k) {
    if (node.output(k).empty()) continue;
    scope.values[node.output(k)] = resolve_name(inner, node, body.output(k).name());
  }
}

std::optional<onnx::FunctionProto> Importer::function_of(const onnx::NodeProto& node,
                                                         const Operation& operation) const {
  if (operation.domain == ir::kAutospDomain) return std::nullopt;
  for (const auto& function : model_.functions()) {
    if (function.name() == node.op_type() && function.overload() == node.overload() &&
        normalized_domain(function.domain()) == operation.domain) {
      return function;
    }
  }
  if (!operation.domain.empty() || stays(operation.op)) return std::nullopt;
  const auto version = static_cast<int>(operation.version);
  const onnx::OpSchema* schema = onnx::OpSchemaRegistry::Schema(operation.op, version, "");
  if (schema == nullptr) return std::nullopt;
  onnx::FunctionProto function;
  if (schema->HasFunction()) {
    const onnx::FunctionProto* body = schema->GetFunction(version);
    if (body == nullptr) body = schema->GetFunction();
    if (body == nullptr) return std::nullopt;
    function = *body;
  } else if (schema->HasContextDependentFunction()) {
    std::vector<onnx::TypeProto> types(operation.inputs.size());
    for (size_t k = 0; k < types.size(); ++k) {
      if (operation.inputs[k]) set_type(graph_.type(operation.inputs[k]), &types[k]);
    }
    onnx::NodeProto call = node;
    call.clear_attribute();
    for (const auto& [name, attribute] : operation.attributes) {
      *call.add_attribute() = to_proto(name, attribute);
    }
    const onnx::FunctionBodyBuildContextImpl context(call, types);
    if (!schema->BuildContextDependentFunction(context, function, version) &&
        !schema->BuildContextDependentFunction(context, function)) {
      return std::nullopt;
    }
  } else {
    return std::nullopt;
  }
  for (const auto& [name, attribute] : schema->attributes()) {
    if (attribute.default_value.has_name()) {
      auto* with_default = function.add_attribute_proto();
      *with_default = attribute.default_value;
      with_default->set_name(name);
    }
  }
  return function;
}

void Importer::inline_function(Scope& scope, const onnx::NodeProto& node,
                               const Operation& operation, const onnx::FunctionProto& function) {
  const std::string id = fmt::format("{}::{}", operation.domain, operation.op);
  if (std::ranges::find(scope.calls, id) != scope.calls.end()) {
    throw Error("function '{}' calls itself: {} -> {}", id, fmt::join(scope.calls, " -> "), id)
        .help("ONNX forbids recursion: export the model again");
  }
  Scope body;
  body.opsets = opsets_of(function.opset_import());
  body.opsets.emplace("", operation.version);
  body.calls = scope.calls;
  body.calls.push_back(id);
  body.prefix = scope.prefix +
                (node.name().empty() && node.output_size() > 0 ? node.output(0) : node.name()) +
                "/";
  for (const auto& attribute : function.attribute_proto()) {
    body.attributes[attribute.name()] = attribute;
  }
  for (const auto& [name, attribute] : operation.attributes) {
    body.attributes[name] = to_proto(name, attribute);
  }
  for (int k = 0; k < function.input_size(); ++k) {
    body.values[function.input(k)] = operation.input(static_cast<size_t>(k));
  }
  for (int k = 0; k < std::min(function.output_size(), node.output_size()); ++k) {
    const std::string& name = operation.results[static_cast<size_t>(k)];
    if (!name.empty()) body.renamed[function.output(k)] = name;
  }
  import_nodes(body, function.node());
  for (int k = 0; k < std::min(function.output_size(), node.output_size()); ++k) {
    if (node.output(k).empty()) continue;
    scope.values[node.output(k)] = resolve_name(body, node, function.output(k));
  }
}

}  // namespace

ir::Graph import_proto(onnx::ModelProto model, const std::filesystem::path& folder,
                       const ImportOptions& options) {
  return Importer(std::move(model), folder, options).run();
}

}  // namespace autosp::onnx_io
