#include "ir/graph.h"

#include <algorithm>

namespace autosp::ir {

namespace {

template <typename T>
const T* get(const std::map<std::string, Attribute>& map, const std::string& name) {
  const auto found = map.find(name);
  if (found == map.end()) return nullptr;
  const T* value = std::get_if<T>(&found->second);
  AUTOSP_CHECK(value != nullptr, "attribute '{}' has an unexpected type", name);
  return value;
}

// Identifies a constant by type and content; only small ones are worth sharing.
constexpr int64_t kSharedConstantBytes = 1024;

std::string content_key(const Tensor& tensor) {
  std::string key = to_string(tensor.type());
  key.push_back('\0');
  const auto bytes = tensor.bytes();
  key.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return key;
}

}  // namespace

int64_t Attributes::get_int(const std::string& name, int64_t otherwise) const {
  const auto* value = get<int64_t>(map_, name);
  return value != nullptr ? *value : otherwise;
}

float Attributes::get_float(const std::string& name, float otherwise) const {
  const auto* value = get<float>(map_, name);
  return value != nullptr ? *value : otherwise;
}

std::string Attributes::get_string(const std::string& name, const std::string& otherwise) const {
  const auto* value = get<std::string>(map_, name);
  return value != nullptr ? *value : otherwise;
}

std::vector<int64_t> Attributes::get_ints(const std::string& name) const {
  const auto* value = get<std::vector<int64_t>>(map_, name);
  return value != nullptr ? *value : std::vector<int64_t>{};
}

const Tensor* Attributes::get_tensor(const std::string& name) const {
  return get<Tensor>(map_, name);
}

std::string Graph::fresh_name(std::string_view hint) const {
  std::string base(hint.empty() ? "value" : hint);
  if (!by_name_.contains(base)) return base;
  int& counter = name_counters_[base];
  while (true) {
    std::string candidate = fmt::format("{}.{}", base, ++counter);
    if (!by_name_.contains(candidate)) return candidate;
  }
}

void Graph::reserve(size_t num_values, size_t num_nodes) {
  values_.reserve(num_values);
  by_name_.reserve(num_values);
  nodes_.reserve(num_nodes);
  node_names_.reserve(num_nodes);
}

ValueId Graph::add_value(Value value) {
  const ValueId id(values_.size());
  const bool is_new = by_name_.try_emplace(value.name, id).second;
  AUTOSP_CHECK(is_new, "value '{}' is defined twice", value.name);
  values_.push_back(std::move(value));
  return id;
}

ValueId Graph::add_input(const std::string& name, Type type) {
  const ValueId id = add_value({.name = name, .type = std::move(type), .kind = ValueKind::kInput});
  inputs_.push_back(id);
  return id;
}

ValueId Graph::add_constant(Tensor tensor, std::string_view name_hint) {
  const bool share = tensor.type().num_bytes() <= kSharedConstantBytes;
  std::string key;
  if (share) {
    key = content_key(tensor);
    if (const auto found = shared_constants_.find(key); found != shared_constants_.end()) {
      return found->second;
    }
  }
  const ValueId id =
      add_named_constant(fresh_name(name_hint.empty() ? "const" : name_hint), std::move(tensor));
  if (share) shared_constants_.emplace(std::move(key), id);
  return id;
}

ValueId Graph::add_named_constant(const std::string& name, Tensor tensor) {
  Type type = tensor.type();
  return add_value({.name = name,
                    .type = std::move(type),
                    .kind = ValueKind::kConstant,
                    .constant = std::move(tensor)});
}

ValueId Graph::add_external(const std::string& name, Type type, ExternalData data) {
  return add_value({.name = name,
                    .type = std::move(type),
                    .kind = ValueKind::kExternal,
                    .external = std::move(data)});
}

NodeId Graph::add_node(std::string op, std::vector<ValueId> inputs, std::vector<Type> result_types,
                       Attributes attributes, std::string domain,
                       std::vector<std::string> result_names, std::string node_name) {
  const NodeId id(nodes_.size());
  Node node{.name = std::move(node_name),
            .domain = std::move(domain),
            .op = std::move(op),
            .inputs = std::move(inputs),
            .attributes = std::move(attributes)};
  for (size_t k = 0; k < result_types.size(); ++k) {
    if (result_types[k].dtype == DataType::kUndefined) {
      node.outputs.emplace_back();
      continue;
    }
    const std::string hint =
        k < result_names.size() && !result_names[k].empty() ? result_names[k] : node.op;
    node.outputs.push_back(add_value({.name = fresh_name(hint),
                                      .type = std::move(result_types[k]),
                                      .kind = ValueKind::kResult,
                                      .producer = id,
                                      .result_index = static_cast<int>(k)}));
  }
  if (node.name.empty()) {
    for (ValueId output : node.outputs) {
      if (output) {
        node.name = name_of(output);
        break;
      }
    }
  }
  while (!node_names_.insert(node.name).second) node.name += "_";
  nodes_.push_back(std::move(node));
  return id;
}

const Node* Graph::producer(ValueId id) const {
  if (!id || value(id).kind != ValueKind::kResult) return nullptr;
  return &node(value(id).producer);
}

std::optional<std::vector<int64_t>> Graph::constant_ints(ValueId id) const {
  if (!is_constant(id) || is_floating(type(id).dtype)) return std::nullopt;
  return constant(id).as_int64s();
}

std::optional<ValueId> Graph::find(std::string_view name) const {
  const auto found = by_name_.find(std::string(name));
  if (found == by_name_.end()) return std::nullopt;
  return found->second;
}

std::string Graph::describe(const Node& node) const {
  return fmt::format("{}: {}{}{}", node.name, node.domain,
                     node.domain.empty() ? "" : "::", node.op);
}

std::vector<std::vector<NodeId>> consumers(const Graph& graph) {
  std::vector<std::vector<NodeId>> result(graph.values().size());
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    for (ValueId input : graph.nodes()[n].inputs) {
      if (!input) continue;
      auto& readers = result[input.index()];
      if (readers.empty() || readers.back() != NodeId(n)) readers.emplace_back(n);
    }
  }
  return result;
}

void verify(const Graph& graph) {
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    for (ValueId input : node.inputs) {
      if (!input) continue;
      AUTOSP_CHECK(input.index() < graph.values().size(), "{}", graph.describe(node));
      const Value& value = graph.value(input);
      AUTOSP_CHECK(value.kind != ValueKind::kResult || value.producer.index() < n,
                   "{} reads '{}' before it is computed", graph.describe(node), value.name);
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (!node.outputs[k]) continue;
      const Value& value = graph.value(node.outputs[k]);
      AUTOSP_CHECK(value.kind == ValueKind::kResult && value.producer == NodeId(n) &&
                       value.result_index == static_cast<int>(k),
                   "{}: output '{}' names another producer", graph.describe(node), value.name);
      AUTOSP_CHECK(value.type.dtype != DataType::kUndefined, "'{}' has no type", value.name);
      for (int64_t extent : value.type.shape) {
        AUTOSP_CHECK(extent >= 0, "'{}' has shape {}", value.name, to_string(value.type.shape));
      }
    }
  }
  for (const Output& output : graph.outputs()) {
    AUTOSP_CHECK(output.value && output.value.index() < graph.values().size(), "output '{}'",
                 output.name);
  }
}

}  // namespace autosp::ir
