// ir::Graph -> ModelProto and file.
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <onnx/checker.h>
#include <onnx/defs/printer.h>
#include <onnx/shape_inference/implementation.h>

#include <algorithm>
#include <limits>
#include <unordered_set>

#include "onnx/atomic_file.h"
#include "onnx/functions.h"
#include "onnx/model.h"
#include "onnx/operation.h"
#include "onnx/proto.h"
#include "onnx/sharding.h"

namespace autosp::onnx_io {

namespace {

// The oldest file format that may carry an operator set, so that older runtimes read what they can.
int64_t ir_version_for(int64_t opset) {
  if (opset <= 22) return 10;
  return std::min<int64_t>(opset - 12, 13);
}

// Values that graph outputs need as an Identity: inputs, constants and values listed twice.
struct Names {
  std::vector<std::string> of_value;
  std::vector<size_t> copied_outputs;
};

// Values keep their names, except that a graph output's value takes the output's name.
Names choose_names(const ir::Graph& graph) {
  Names names;
  std::unordered_set<std::string> reserved;
  for (ValueId input : graph.inputs()) reserved.insert(graph.name_of(input));
  std::vector<bool> named(graph.values().size(), false);
  names.of_value.resize(graph.values().size());
  for (size_t k = 0; k < graph.outputs().size(); ++k) {
    const ir::Output& output = graph.outputs()[k];
    const ir::Value& value = graph.value(output.value);
    if (value.kind == ir::ValueKind::kInput && value.name == output.name) continue;
    if (!reserved.insert(output.name).second) {
      throw Error("the graph has two inputs or outputs named '{}'", output.name)
          .note("ONNX tells them apart by their names")
          .help("give every input and output of the model a name of its own");
    }
    if (value.kind != ir::ValueKind::kResult || named[output.value.index()]) {
      names.copied_outputs.push_back(k);
      continue;
    }
    named[output.value.index()] = true;
    names.of_value[output.value.index()] = output.name;
  }
  std::unordered_set<std::string> taken = reserved;
  for (size_t v = 0; v < names.of_value.size(); ++v) taken.insert(graph.values()[v].name);
  for (size_t v = 0; v < names.of_value.size(); ++v) {
    if (named[v]) continue;
    const ir::Value& value = graph.values()[v];
    std::string& name = names.of_value[v];
    name = value.name;
    if (value.kind == ir::ValueKind::kInput || !reserved.contains(name)) continue;
    for (int suffix = 1; taken.contains(name); ++suffix) {
      name = fmt::format("{}.{}", value.name, suffix);
    }
    taken.insert(name);
  }
  return names;
}

void set_external(const ir::ExternalData& data, onnx::TensorProto* tensor) {
  tensor->set_data_location(onnx::TensorProto::EXTERNAL);
  const auto add = [&](const char* key, const std::string& value) {
    auto* entry = tensor->add_external_data();
    entry->set_key(key);
    entry->set_value(value);
  };
  add("location", data.location);
  add("offset", std::to_string(data.offset));
  add("length", std::to_string(data.length));
}

class Exporter {
 public:
  Exporter(const ir::Graph& graph, const ExportOptions& options)
      : graph_(graph),
        names_(choose_names(graph)),
        data_(options.data),
        sharding_(options.sharding),
        dim_name_(options.dim_name),
        functions_(graph, options) {}

  onnx::ModelProto run() {
    out_ = model_.mutable_graph();
    out_->set_name(graph_.name.empty() ? "graph" : graph_.name);
    set_header();
    add_leaves();
    for (const ir::Node& node : graph_.nodes()) add_node(node);
    add_outputs();
    functions_.write(&model_);
    return std::move(model_);
  }

 private:
  const std::string& name(ValueId id) const { return names_.of_value[id.index()]; }

  void set_header() {
    model_.set_ir_version(ir_version_for(graph_.opset));
    if (sharding_ != nullptr) {
      model_.set_ir_version(std::max(model_.ir_version(), kShardingIrVersion));
      add_configuration(*sharding_, &model_);
    }
    model_.set_producer_name("autosp-onnx");
    const auto import = [&](const std::string& domain, int64_t version) {
      auto* opset = model_.add_opset_import();
      opset->set_domain(domain);
      opset->set_version(version);
    };
    import("", graph_.opset);
    std::map<std::string, int64_t> domains;
    for (const ir::Node& node : graph_.nodes()) {
      if (!node.domain.empty()) domains[node.domain] = 1;
    }
    for (const auto& [domain, version] : domains) import(domain, version);
    for (const auto& [key, value] : graph_.metadata) {
      auto* entry = model_.add_metadata_props();
      entry->set_key(key);
      entry->set_value(value);
    }
  }

  // Inputs, and the initializers that something reads.
  void add_leaves() {
    std::vector<bool> read(graph_.values().size(), false);
    for (const ir::Node& node : graph_.nodes()) {
      for (ValueId input : node.inputs) {
        if (input) read[input.index()] = true;
      }
    }
    for (const ir::Output& output : graph_.outputs()) read[output.value.index()] = true;
    for (ValueId input : graph_.inputs()) add_value_info(out_->add_input(), input);
    for (size_t v = 0; v < graph_.values().size(); ++v) {
      const ir::Value& value = graph_.values()[v];
      if (!read[v]) continue;
      if (value.kind == ir::ValueKind::kConstant) {
        const auto shared =
            data_ == nullptr ? std::nullopt : data_->find(value.name, value.constant);
        if (shared) {
          add_external(names_.of_value[v], value.type, *shared);
        } else {
          *out_->add_initializer() = to_proto(value.constant, names_.of_value[v]);
        }
      } else if (value.kind == ir::ValueKind::kExternal) {
        add_external(names_.of_value[v], value.type, value.external);
      }
    }
  }

  void add_external(const std::string& tensor_name, const ir::Type& type,
                    const ir::ExternalData& data) {
    auto* tensor = out_->add_initializer();
    tensor->set_name(tensor_name);
    tensor->set_data_type(static_cast<int32_t>(type.dtype));
    for (int64_t extent : type.shape) tensor->add_dims(extent);
    set_external(data, tensor);
  }

  void add_node(const ir::Node& node) {
    auto* proto = out_->add_node();
    proto->set_name(node.name);
    proto->set_domain(node.domain);
    proto->set_op_type(node.op);
    for (ValueId input : node.inputs) proto->add_input(input ? name(input) : "");
    for (ValueId output : node.outputs) {
      proto->add_output(output ? name(output) : "");
      if (output && !is_graph_output(name(output))) add_value_info(out_->add_value_info(), output);
    }
    for (const auto& [key, attribute] : node.attributes) {
      *proto->add_attribute() = to_proto(key, attribute);
    }
    functions_.bind(node, proto);
    add_property(kOriginKey, node.origin, proto);
    add_property(kPhaseKey, node.phase, proto);
    add_sharding(node, proto);
  }

  void add_sharding(const ir::Node& node, onnx::NodeProto* proto) const {
    if (sharding_ == nullptr) return;
    const auto found = sharding_->nodes.find(node.name);
    if (found == sharding_->nodes.end() || found->second.origin != node.origin) return;
    add_device_configuration(*sharding_, found->second, proto);
  }

  static void add_property(const char* key, const std::string& value, onnx::NodeProto* node) {
    if (value.empty()) return;
    auto* property = node->add_metadata_props();
    property->set_key(key);
    property->set_value(value);
  }

  void add_outputs() {
    for (size_t k : names_.copied_outputs) {
      const ir::Output& output = graph_.outputs()[k];
      auto* copy = out_->add_node();
      copy->set_name("output/" + output.name);
      copy->set_op_type("Identity");
      copy->add_input(name(output.value));
      copy->add_output(output.name);
    }
    for (const ir::Output& output : graph_.outputs()) {
      auto* info = out_->add_output();
      info->set_name(output.name);
      set_value_type(output.value, info->mutable_type());
    }
  }

  bool is_graph_output(const std::string& value_name) {
    if (output_names_.empty()) {
      for (const ir::Output& output : graph_.outputs()) output_names_.insert(output.name);
    }
    return output_names_.contains(value_name);
  }

  void add_value_info(onnx::ValueInfoProto* info, ValueId id) const {
    info->set_name(name(id));
    set_value_type(id, info->mutable_type());
  }

  void set_value_type(ValueId id, onnx::TypeProto* proto) const {
    set_type(graph_.type(id), proto);
    if (!dim_name_) return;
    auto* shape = proto->mutable_tensor_type()->mutable_shape();
    for (int k = 0; k < shape->dim_size(); ++k) {
      const std::string open = dim_name_(id, static_cast<size_t>(k));
      if (!open.empty()) shape->mutable_dim(k)->set_dim_param(open);
    }
  }

  const ir::Graph& graph_;
  Names names_;
  const DataFile* data_;
  const ir::GraphSharding* sharding_;
  DimName dim_name_;
  Functions functions_;
  onnx::ModelProto model_;
  onnx::GraphProto* out_ = nullptr;
  std::unordered_set<std::string> output_names_;
};

// ONNX's checker and strict shape inference. External data counts as inputs here: it lies relative
// to where the file will be, and is not to be read.
void check(const onnx::ModelProto& model, const std::filesystem::path& path) {
  register_schemas();
  onnx::ModelProto copy = model;
  auto* initializers = copy.mutable_graph()->mutable_initializer();
  for (const auto& tensor : *initializers) {
    if (tensor.data_location() != onnx::TensorProto::EXTERNAL) continue;
    auto* input = copy.mutable_graph()->add_input();
    input->set_name(tensor.name());
    set_type(tensor_type(tensor, tensor.name()), input->mutable_type());
  }
  initializers->erase(std::remove_if(initializers->begin(), initializers->end(),
                                     [](const onnx::TensorProto& tensor) {
                                       return tensor.data_location() == onnx::TensorProto::EXTERNAL;
                                     }),
                      initializers->end());
  try {
    onnx::checker::check_model(copy);
    const onnx::ShapeInferenceOptions strict{true, 1, false};
    onnx::shape_inference::InferShapes(copy, onnx::OpSchemaRegistry::Instance(), strict);
  } catch (const std::exception& failure) {
    throw InternalError(fmt::format("ONNX's checker rejects what was to be written to '{}': {}",
                                    path.string(), failure.what()));
  }
}

std::string serialize(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

}  // namespace

onnx::ModelProto export_proto(const ir::Graph& graph, const ExportOptions& options) {
  return Exporter(graph, options).run();
}

void export_model(const ir::Graph& graph, const std::filesystem::path& path,
                  const ExportOptions& options) {
  const onnx::ModelProto model = export_proto(graph, options);
  const size_t size = model.ByteSizeLong();
  if (size > static_cast<size_t>(std::numeric_limits<int>::max())) {
    throw Error("'{}' would hold {}, more than the 2 GiB that an ONNX file can", path.string(),
                format_bytes(static_cast<double>(size)))
        .note("an ONNX file is one protocol buffer message, whose size is an int32")
        .help("save the model with its weights as external data, then run this again");
  }
  if (options.check) check(model, path);
  write_file(path, serialize(model));
}

std::string print_text(const ir::Graph& graph) {
  return onnx::ProtoToString(export_proto(graph)) + "\n";
}

}  // namespace autosp::onnx_io
