#include "onnx/dims.h"

#include <algorithm>
#include <unordered_set>

namespace autosp::onnx_io {

namespace {

const onnx::TensorShapeProto& shape_of(const onnx::ValueInfoProto& input) {
  if (!input.type().has_tensor_type()) {
    throw Error(
        "input '{}' is not a tensor; sequences, optionals and sparse tensors are not "
        "supported",
        input.name())
        .help("export a graph whose inputs are all dense tensors");
  }
  if (!is_supported(input.type().tensor_type().elem_type())) {
    throw Error("input '{}' has the unsupported element type {}", input.name(),
                onnx::TensorProto_DataType_Name(static_cast<onnx::TensorProto_DataType>(
                    input.type().tensor_type().elem_type())));
  }
  if (!input.type().tensor_type().has_shape()) {
    throw Error("input '{}' has no shape, not even a rank", input.name())
        .help("export the model with shapes for its inputs");
  }
  const auto& shape = input.type().tensor_type().shape();
  for (int k = 0; k < shape.dim_size(); ++k) {
    if (!shape.dim(k).has_dim_value() || shape.dim(k).dim_value() >= 0) continue;
    throw Error("input '{}' has the extent {} along axis {}", input.name(),
                shape.dim(k).dim_value(), k)
        .note("an extent is 0 or more; one that is open has a name, or nothing at all")
        .help("export the model again, with a symbolic dimension there");
  }
  return shape;
}

void bind_one(std::map<std::string, int64_t>& dims, const std::string& name, int64_t extent,
              const std::string& source) {
  const auto [entry, fresh] = dims.emplace(name, extent);
  if (!fresh && entry->second != extent) {
    throw Error("symbolic dimension '{}' is {}, but {} has {} there", name, entry->second, source,
                extent);
  }
}

std::vector<std::string> names_of(const std::vector<SymbolicDim>& dims) {
  std::vector<std::string> names;
  for (const SymbolicDim& dim : dims) names.push_back(dim.name);
  return names;
}

void check_known_names(const std::vector<SymbolicDim>& known, const ImportOptions& options) {
  const auto names = names_of(known);
  for (const auto& [name, extent] : options.dims) {
    if (extent < 0) throw Error("dimension '{}' cannot be {}", name, extent);
    if (std::ranges::find(names, name) != names.end()) continue;
    Error error("the model has no symbolic dimension '{}'", name);
    const std::string near = nearest_name(name, names);
    error.note(names.empty() ? "all its inputs have fixed shapes"
                             : fmt::format("it has: {}", fmt::join(names, ", ")));
    throw error.help(near.empty() ? "leave --dim " + name + " out"
                                  : fmt::format("did you mean --dim {}={}?", near, extent));
  }
}

void bind_input(std::map<std::string, int64_t>& dims, const onnx::ValueInfoProto& input,
                const ir::Shape& actual) {
  const auto& shape = shape_of(input);
  const std::string source =
      fmt::format("the given '{}', of shape {},", input.name(), ir::to_string(actual));
  if (static_cast<size_t>(shape.dim_size()) != actual.size()) {
    throw Error("input '{}' has rank {}, but the given one has shape {}", input.name(),
                shape.dim_size(), ir::to_string(actual));
  }
  for (int k = 0; k < shape.dim_size(); ++k) {
    const int64_t extent = actual[static_cast<size_t>(k)];
    const auto& dim = shape.dim(k);
    if (!dim.has_dim_value()) {
      bind_one(dims, dim_name(dim, input.name(), k), extent, source);
    } else if (dim.dim_value() != extent) {
      throw Error("input '{}' has extent {} along axis {}, but the given one has shape {}",
                  input.name(), dim.dim_value(), k, ir::to_string(actual));
    }
  }
}

}  // namespace

std::string dim_name(const onnx::TensorShapeProto::Dimension& dim, const std::string& value,
                     int axis) {
  return dim.has_dim_param() && !dim.dim_param().empty() ? dim.dim_param()
                                                         : fmt::format("{}:{}", value, axis);
}

std::vector<const onnx::ValueInfoProto*> fed_inputs(const onnx::GraphProto& graph) {
  std::unordered_set<std::string> initialized;
  for (const auto& tensor : graph.initializer()) initialized.insert(tensor.name());
  std::vector<const onnx::ValueInfoProto*> inputs;
  for (const auto& input : graph.input()) {
    if (!initialized.contains(input.name())) inputs.push_back(&input);
  }
  return inputs;
}

std::vector<SymbolicDim> symbolic_dims_of(const std::vector<const onnx::ValueInfoProto*>& inputs) {
  std::vector<SymbolicDim> dims;
  for (const auto* input : inputs) {
    const auto& shape = shape_of(*input);
    for (int k = 0; k < shape.dim_size(); ++k) {
      if (shape.dim(k).has_dim_value()) continue;
      const std::string name = dim_name(shape.dim(k), input->name(), k);
      auto found = std::ranges::find(dims, name, &SymbolicDim::name);
      if (found == dims.end()) found = dims.insert(dims.end(), SymbolicDim{name, {}});
      found->uses.push_back(fmt::format("{}:{}", input->name(), k));
    }
  }
  return dims;
}

DimBinder::DimBinder(const std::vector<const onnx::ValueInfoProto*>& inputs,
                     const ImportOptions& options)
    : dims_(options.dims) {
  const auto known = symbolic_dims_of(inputs);
  check_known_names(known, options);
  for (const auto* input : inputs) {
    const auto given = options.input_shapes.find(input->name());
    if (given != options.input_shapes.end()) bind_input(dims_, *input, given->second);
  }
  std::vector<std::string> unbound;
  std::string help;
  for (const SymbolicDim& dim : known) {
    if (dims_.contains(dim.name)) continue;
    unbound.push_back(fmt::format("'{}' (in {})", dim.name, fmt::join(dim.uses, ", ")));
    help += fmt::format(" --dim {}=N", dim.name);
  }
  if (!unbound.empty()) {
    throw Error("symbolic dimension{} {} {} no value", unbound.size() > 1 ? "s" : "",
                fmt::join(unbound, ", "), unbound.size() > 1 ? "have" : "has")
        .help(fmt::format("give one with --dim NAME=VALUE:{}", help));
  }
}

std::optional<ir::Type> DimBinder::bind(const onnx::ValueInfoProto& value) const {
  if (!value.type().has_tensor_type()) return std::nullopt;
  const auto& tensor = value.type().tensor_type();
  if (!is_supported(tensor.elem_type()) || !tensor.has_shape()) return std::nullopt;
  ir::Type type{static_cast<ir::DataType>(tensor.elem_type()), {}};
  for (int k = 0; k < tensor.shape().dim_size(); ++k) {
    const auto& dim = tensor.shape().dim(k);
    if (dim.has_dim_value()) {
      if (dim.dim_value() < 0) return std::nullopt;
      type.shape.push_back(dim.dim_value());
      continue;
    }
    const auto found = dims_.find(dim_name(dim, value.name(), k));
    if (found == dims_.end()) return std::nullopt;
    type.shape.push_back(found->second);
  }
  return type;
}

}  // namespace autosp::onnx_io
