// The intermediate representation: a static-single-assignment dataflow graph.
//
// Values have identity (ValueId); their names are labels for people and files. Nodes are stored in
// a topological order, which is also the order of execution, so a NodeId is a position in that
// order. A graph only grows: passes read one graph and build another (see ir/rewriter.h).
//
// Operators are ONNX's, at the version kOpset or above, in normal form: axes, split sizes, pads and
// slice bounds are inputs (constants wherever the model lets them be), never attributes. Control
// flow and functions do not occur: the importer inlines or refuses them.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "ir/tensor.h"
#include "ir/type.h"

namespace autosp::ir {

// The lowest operator-set version a Graph is written in; a model at a higher one keeps its own.
inline constexpr int64_t kOpset = 20;

// The domain of this project's operators (collectives, recompute barriers).
inline constexpr std::string_view kAutospDomain = "autosp";
inline constexpr std::string_view kMicrosoftDomain = "com.microsoft";

using Attribute = std::variant<int64_t, float, std::string, std::vector<int64_t>,
                               std::vector<float>, std::vector<std::string>, Tensor>;

// Named attributes of a node, in name order.
class Attributes {
 public:
  Attributes() = default;
  Attributes(std::initializer_list<std::pair<const std::string, Attribute>> items) : map_(items) {}

  bool has(const std::string& name) const { return map_.contains(name); }
  void set(const std::string& name, Attribute value) {
    map_.insert_or_assign(name, std::move(value));
  }
  void erase(const std::string& name) { map_.erase(name); }

  // The attribute, or the default when absent; InternalError when it has another type.
  int64_t get_int(const std::string& name, int64_t otherwise) const;
  float get_float(const std::string& name, float otherwise) const;
  std::string get_string(const std::string& name, const std::string& otherwise) const;
  std::vector<int64_t> get_ints(const std::string& name) const;  // empty when absent
  const Tensor* get_tensor(const std::string& name) const;       // null when absent

  auto begin() const { return map_.begin(); }
  auto end() const { return map_.end(); }
  bool empty() const { return map_.empty(); }

 private:
  std::map<std::string, Attribute> map_;
};

// Bytes that live in another file and are never read by the compiler.
struct ExternalData {
  std::string location;  // as the model writes it: relative to the model's folder
  int64_t offset = 0;    // bytes
  int64_t length = 0;    // bytes
};

enum class ValueKind : uint8_t {
  kInput,     // fed by the caller at every run
  kConstant,  // known now
  kExternal,  // an initializer whose bytes live in another file
  kResult,    // computed by a node
};

struct Value {
  std::string name;
  Type type;
  ValueKind kind = ValueKind::kResult;
  Tensor constant;        // kConstant
  ExternalData external;  // kExternal
  NodeId producer;        // kResult
  int result_index = 0;   // kResult: which result of the producer
};

struct Node {
  std::string name;
  std::string domain;  // "" is ai.onnx
  std::string op;
  std::vector<ValueId> inputs;   // an invalid id is an absent optional input
  std::vector<ValueId> outputs;  // likewise
  Attributes attributes;
  std::string origin;  // the imported node this one stands for, "" when it is that node itself
  std::string phase;   // of a rank graph: "forward", "backward" or "recompute"; "" when not known

  bool is(std::string_view standard_op) const { return domain.empty() && op == standard_op; }
  // Input k, or an invalid id when it is absent.
  ValueId input(size_t k) const { return k < inputs.size() ? inputs[k] : ValueId(); }
  ValueId output(size_t k) const { return k < outputs.size() ? outputs[k] : ValueId(); }
};

struct Output {
  std::string name;
  ValueId value;
};

class Graph {
 public:
  std::string name;
  int64_t opset = kOpset;  // of the default domain
  std::map<std::string, std::string>
      metadata;  // free-form properties, kept through import and export
  // Initializers that are trained though no output is named after their gradient, by name.
  std::unordered_set<std::string> declared_parameters;

  // --- Building. Names are made unique; an empty hint gives a name derived from the operator.
  void reserve(size_t num_values, size_t num_nodes);  // room, where about as many will come
  ValueId add_input(const std::string& name, Type type);
  ValueId add_constant(Tensor tensor, std::string_view name_hint = "");  // shares equal small ones
  ValueId add_named_constant(const std::string& name, Tensor tensor);    // an initializer
  ValueId add_external(const std::string& name, Type type, ExternalData data);
  // Appends a node; one result per type. A type with dtype kUndefined makes that output absent.
  NodeId add_node(std::string op, std::vector<ValueId> inputs, std::vector<Type> result_types,
                  Attributes attributes = {}, std::string domain = "",
                  std::vector<std::string> result_names = {}, std::string node_name = "");
  void add_output(std::string output_name, ValueId value) {
    outputs_.push_back({std::move(output_name), value});
  }
  void replace_output(size_t k, ValueId value) { outputs_[k].value = value; }
  void set_origin(NodeId node, std::string origin) {
    nodes_[node.index()].origin = std::move(origin);
  }
  void set_phase(NodeId node, std::string_view phase) { nodes_[node.index()].phase = phase; }
  std::string fresh_name(std::string_view hint) const;

  // --- Reading.
  const std::vector<Value>& values() const { return values_; }
  const std::vector<Node>& nodes() const { return nodes_; }
  const std::vector<ValueId>& inputs() const { return inputs_; }
  const std::vector<Output>& outputs() const { return outputs_; }

  const Value& value(ValueId id) const { return values_[id.index()]; }
  const Type& type(ValueId id) const { return value(id).type; }
  const Shape& shape(ValueId id) const { return value(id).type.shape; }
  const std::string& name_of(ValueId id) const { return value(id).name; }
  const Node& node(NodeId id) const { return nodes_[id.index()]; }
  // The node that computes `id`, or null for inputs and constants.
  const Node* producer(ValueId id) const;

  bool is_constant(ValueId id) const { return id && value(id).kind == ValueKind::kConstant; }
  const Tensor& constant(ValueId id) const { return value(id).constant; }
  // The elements of an integer constant; nullopt when absent or not constant.
  std::optional<std::vector<int64_t>> constant_ints(ValueId id) const;

  std::optional<ValueId> find(std::string_view name) const;

  // "layer0/scores: Softmax", for messages.
  std::string describe(const Node& node) const;

 private:
  ValueId add_value(Value value);

  std::vector<Value> values_;
  std::vector<Node> nodes_;
  std::vector<ValueId> inputs_;
  std::vector<Output> outputs_;
  std::unordered_map<std::string, ValueId> by_name_;
  std::unordered_set<std::string> node_names_;
  std::unordered_map<std::string, ValueId> shared_constants_;
  mutable std::unordered_map<std::string, int> name_counters_;
};

// For every value, the nodes that read it (once per node, in order).
std::vector<std::vector<NodeId>> consumers(const Graph& graph);

// Throws InternalError unless ids are valid, nodes are in topological order, every result has a
// type and every output exists. Run after each pass.
void verify(const Graph& graph);

}  // namespace autosp::ir
