#include "shard/roles.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <charconv>

#include "base/error.h"
#include "ir/gradient_names.h"

namespace autosp::shard {

namespace {

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

bool contains_any(const std::string& text, const std::vector<std::string>& words) {
  return std::ranges::any_of(
      words, [&](const auto& word) { return text.find(word) != std::string::npos; });
}

// The names exporters give to dimensions and inputs.
bool names_sequence(const std::string& dim) {
  static const std::vector<std::string> kWhole = {"s", "t", "target", "tgt", "source", "src"};
  return contains_any(lower(dim), {"seq", "token", "len", "time", "frame", "patch"}) ||
         std::ranges::find(kWhole, lower(dim)) != kWhole.end();
}
bool names_batch(const std::string& dim) {
  return contains_any(lower(dim), {"batch"}) || lower(dim) == "b" || lower(dim) == "n";
}
bool names_token_input(const std::string& input) {
  return contains_any(lower(input), {"input_ids", "labels", "token", "position_ids",
                                     "attention_mask", "targets", "segment_ids", "ids"});
}
// Of floating-point inputs only a few names are data: most are parameters, frozen ones included.
bool names_floating_data(const std::string& input) {
  const std::string name = lower(input);
  if (name.ends_with("weight") || name.ends_with("bias")) return false;
  return contains_any(name, {"inputs_embeds", "input_features", "pixel", "image", "audio", "mask",
                             "hidden_states", "targets", "labels"});
}

std::string join(std::vector<std::string> names) {
  if (names.size() > 8) {
    names.resize(8);
    names.emplace_back("...");
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string input_names(const ir::Graph& graph) {
  std::vector<std::string> names;
  for (ValueId input : graph.inputs()) names.push_back(graph.name_of(input));
  return join(std::move(names));
}

// `option` is the one that names the dimension, for messages.
DimTag parse_tag(const ir::Graph& graph, const std::string& text, const std::string& option) {
  const std::string example = fmt::format("write VALUE:AXIS, for example {} input_ids:{}", option,
                                          option == "--seq" ? 1 : 0);
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon + 1 == text.size() || colon == 0) {
    throw Error("{} names '{}', which is not a dimension", option, text)
        .note(fmt::format("the graph's inputs are: {}", input_names(graph)))
        .help(example);
  }
  const std::string name = text.substr(0, colon);
  const auto value = graph.find(name);
  if (!value) {
    std::vector<std::string> names;
    for (const auto& candidate : graph.values()) names.push_back(candidate.name);
    const auto near = nearest_name(name, names);
    throw Error("{} names '{}', but the graph has no such value", option, name)
        .note(fmt::format("the graph's inputs are: {}", input_names(graph)))
        .help(near.empty() ? example : fmt::format("did you mean '{}'?", near));
  }
  int axis = 0;
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(text.data() + colon + 1, end, axis);
  if (status != std::errc() || stop != end) {
    throw Error("{}: '{}' is not an axis of '{}'", option, text.substr(colon + 1), name)
        .note(fmt::format("'{}' is {}", name, to_string(graph.type(*value))))
        .help(example);
  }
  const auto rank = static_cast<int>(graph.shape(*value).size());
  if (axis < -rank || axis >= rank) {
    throw Error("{}: '{}' has {} dimensions; there is no axis {}", option, name, rank, axis)
        .note(fmt::format("'{}' is {}", name, to_string(graph.type(*value))))
        .help(rank == 0 ? "name a value that has dimensions"
                        : fmt::format("its axes are 0 to {}", rank - 1));
  }
  return {*value, axis < 0 ? axis + rank : axis};
}

class Detector {
 public:
  Detector(const ir::Graph& graph, const RoleOptions& options) : graph_(graph), options_(options) {
    roles_.is_parameter.assign(graph.values().size(), false);
  }

  Roles detect() {
    find_gradients();
    find_loss();
    find_parameters();
    find_sequence();
    find_batch();
    return std::move(roles_);
  }

 private:
  template <typename... Args>
  void because(fmt::format_string<Args...> format, Args&&... args) {
    roles_.reasons.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  std::optional<size_t> output_named(const std::string& name) const {
    for (size_t k = 0; k < graph_.outputs().size(); ++k) {
      if (graph_.outputs()[k].name == name) return k;
    }
    return std::nullopt;
  }

  size_t required_output(const std::string& name, const std::string& option) const {
    if (const auto found = output_named(name)) return *found;
    std::vector<std::string> names;
    for (const auto& output : graph_.outputs()) names.push_back(output.name);
    const auto near = nearest_name(name, names);
    throw Error("{} names '{}', which is not an output of the graph", option, name)
        .note(fmt::format("its outputs are: {}", output_names()))
        .help(near.empty() ? "give the name of an output"
                           : fmt::format("did you mean '{}'?", near));
  }

  bool is_leaf(const std::string& name) const {
    const auto value = graph_.find(name);
    return value && graph_.value(*value).kind != ir::ValueKind::kResult;
  }

  void find_gradients() {
    std::vector<bool> taken(graph_.outputs().size(), false);
    for (const auto& [parameter, output] : options_.gradients) {
      const size_t k = required_output(output, "--grad");
      if (!is_leaf(parameter)) {
        throw Error("--grad names the parameter '{}', which is no input or initializer", parameter)
            .note(fmt::format("the graph's inputs are: {}", input_names(graph_)))
            .help("write --grad PARAMETER=OUTPUT, for example --grad w=w.grad");
      }
      check_gradient(parameter, k);
      if (taken[k]) {
        throw Error("--grad gives the output '{}' to two parameters", output)
            .note(fmt::format("the second is '{}'", parameter))
            .help("an output is the gradient of one parameter");
      }
      taken[k] = true;
      roles_.gradients.push_back({k, parameter});
    }
    for (size_t k = 0; k < graph_.outputs().size(); ++k) {
      if (taken[k]) continue;
      const auto parameter = ir::parameter_of_gradient(graph_, graph_.outputs()[k].name);
      if (parameter) roles_.gradients.push_back({k, graph_.name_of(*parameter)});
    }
    if (roles_.gradients.empty()) {
      throw Error("the graph has no gradient outputs, so it is no training graph")
          .note(fmt::format("its outputs are: {}", output_names()))
          .help(
              "export forward, loss and backward together, with outputs named <parameter>.grad "
              "(models/export_training_graph.py), or name them with --grad PARAMETER=OUTPUT");
    }
    because("{} gradients, by the names of outputs (such as '{}' of '{}')", roles_.gradients.size(),
            graph_.outputs()[roles_.gradients[0].output].name, roles_.gradients[0].parameter);
  }

  // What the user says is a gradient has its parameter's shape and is of floating point.
  void check_gradient(const std::string& parameter, size_t output) const {
    const ir::Type& of = graph_.type(*graph_.find(parameter));
    const ir::Type& type = graph_.type(graph_.outputs()[output].value);
    if (of.shape == type.shape && ir::is_floating(of.dtype) && ir::is_floating(type.dtype)) return;
    throw Error("--grad {0}={1}: '{1}' cannot be the gradient of '{0}'", parameter,
                graph_.outputs()[output].name)
        .note(fmt::format("'{}' is {}, but '{}' is {}", parameter, to_string(of),
                          graph_.outputs()[output].name, to_string(type)))
        .help("name an output of the parameter's shape, of a floating-point type");
  }

  std::string output_names() const {
    std::vector<std::string> names;
    for (const auto& output : graph_.outputs()) names.push_back(output.name);
    return join(std::move(names));
  }

  bool is_scalar(size_t output) const {
    const ir::Type& type = graph_.type(graph_.outputs()[output].value);
    return ir::is_floating(type.dtype) && type.num_elements() == 1;
  }

  void find_loss() {
    if (options_.loss) {
      roles_.loss = required_output(*options_.loss, "--loss");
      if (!is_scalar(*roles_.loss)) {
        throw Error("--loss names '{}', which is not one floating-point number", *options_.loss)
            .note(fmt::format("it is {}",
                              to_string(graph_.type(graph_.outputs()[*roles_.loss].value))))
            .help("name the output that is differentiated: a floating-point scalar");
      }
      because("loss: output '{}', as given by --loss", *options_.loss);
      return;
    }
    auto is_gradient = [&](size_t k) {
      return std::ranges::any_of(roles_.gradients,
                                 [k](const Gradient& g) { return g.output == k; });
    };
    for (size_t k = 0; k < graph_.outputs().size() && !roles_.loss; ++k) {
      if (!is_gradient(k) && is_scalar(k) &&
          contains_any(lower(graph_.outputs()[k].name), {"loss"}))
        roles_.loss = k;
    }
    for (size_t k = 0; k < graph_.outputs().size() && !roles_.loss; ++k) {
      const bool named_gradient = !ir::gradient_stems(graph_.outputs()[k].name).empty();
      if (!is_gradient(k) && !named_gradient && is_scalar(k)) roles_.loss = k;
    }
    if (!roles_.loss) {
      throw Error("no output looks like the loss: none is a floating-point scalar")
          .note(fmt::format("the outputs are: {}", output_names()))
          .help("name it with --loss OUTPUT");
    }
    because("loss: output '{}'", graph_.outputs()[*roles_.loss].name);
  }

  void find_parameters() {
    for (const Gradient& gradient : roles_.gradients) {
      roles_.is_parameter[graph_.find(gradient.parameter)->index()] = true;
    }
    // Floating-point inputs without a gradient and without a name of data are frozen parameters.
    for (ValueId input : graph_.inputs()) {
      const ir::Value& value = graph_.value(input);
      const bool symbolic = std::ranges::any_of(
          options_.named_dims, [&](const NamedDim& dim) { return dim.input == value.name; });
      const bool tagged = std::ranges::any_of(options_.sequence, [&](const std::string& tag) {
        return tag.starts_with(value.name + ":");
      });
      if (ir::is_floating(value.type.dtype) && !symbolic && !tagged &&
          !names_floating_data(value.name) && !lies_beside_tokens(input)) {
        roles_.is_parameter[input.index()] = true;
      }
    }
  }

  // Parameters are alike on every rank: none of their dimensions is split over tokens or samples.
  void check_is_no_parameter(const DimTag& tag, const std::string& text,
                             const std::string& option) const {
    if (!roles_.is_parameter[tag.value.index()]) return;
    const std::string& name = graph_.name_of(tag.value);
    const auto gradient = std::ranges::find(roles_.gradients, name, &Gradient::parameter);
    throw Error("{} {}: '{}' is a parameter", option, text, name)
        .note(gradient == roles_.gradients.end()
                  ? "nothing marks it as data"
                  : fmt::format("its gradient is '{}'", graph_.outputs()[gradient->output].name))
        .help(fmt::format("name a dimension of the data; the graph's inputs are: {}",
                          input_names(graph_)));
  }

  bool is_data_input(ValueId input) const { return !roles_.is_parameter[input.index()]; }

  // Whether the input's name and shape say that its axis 1 is a sequence.
  bool is_named_like_tokens(ValueId input) const {
    const ir::Value& value = graph_.value(input);
    const size_t rank = value.type.rank();
    if (!is_data_input(input) || (rank != 2 && rank != 3)) return false;
    if (!ir::is_floating(value.type.dtype)) {
      return names_token_input(value.name) && !broadcasts_over_tokens(value);
    }
    if (lies_beside_tokens(input)) return true;
    if (!names_floating_data(value.name) || broadcasts_over_tokens(value)) return false;
    // Numbers per sample (classes, regression targets) are named like those per token.
    const bool per_token = rank == 3 || contains_any(lower(value.name), {"mask"});
    return per_token || is_length_of_tokens(value.type.shape[1]);
  }

  // Whether floats have the batch and the length of an input of tokens (features of speech, rows of
  // a time series). Parameters that a model freezes are named by their modules, with a dot.
  bool lies_beside_tokens(ValueId input) const {
    const ir::Value& value = graph_.value(input);
    const std::string name = lower(value.name);
    const size_t rank = value.type.rank();
    if (!ir::is_floating(value.type.dtype) || (rank != 2 && rank != 3)) return false;
    if (contains_any(name, {".", "weight", "bias"})) return false;
    const int64_t length = value.type.shape[is_convolved(input) ? 2 : 1];
    return std::ranges::any_of(graph_.inputs(), [&](ValueId other) {
      const ir::Value& tokens = graph_.value(other);
      return !ir::is_floating(tokens.type.dtype) && tokens.type.rank() == 2 &&
             names_token_input(tokens.name) && length > 1 &&
             tokens.type.shape == ir::Shape{value.type.shape[0], length};
    });
  }

  bool is_convolved(ValueId input) const {
    return graph_.type(input).rank() == 3 &&
           std::ranges::any_of(graph_.nodes(), [input](const ir::Node& node) {
             return node.is("Conv") && node.input(0) == input;
           });
  }

  // Such as a mask [batch, 1, keys], or an integer per sample.
  static bool broadcasts_over_tokens(const ir::Value& value) {
    return value.type.shape[1] == 1 &&
           (value.type.rank() == 3 || !ir::is_floating(value.type.dtype));
  }

  // Whether an integer input that is named like tokens has this length, or there is none.
  bool is_length_of_tokens(int64_t length) const {
    bool any = false;
    for (ValueId input : graph_.inputs()) {
      const ir::Value& value = graph_.value(input);
      const bool tokens = !ir::is_floating(value.type.dtype) && value.type.rank() == 2 &&
                          names_token_input(value.name);
      if (tokens && value.type.shape[1] == length) return true;
      any = any || tokens;
    }
    return !any;
  }

  void find_sequence() {
    if (!options_.sequence.empty()) {
      for (const std::string& text : options_.sequence) {
        const DimTag tag = parse_tag(graph_, text, "--seq");
        check_is_no_parameter(tag, text, "--seq");
        roles_.sequence.push_back(tag);
      }
      because("sequence: as given by --seq");
      return;
    }
    for (const NamedDim& dim : options_.named_dims) {
      const auto value = graph_.find(dim.input);
      if (!value || !names_sequence(dim.name) || !is_data_input(*value)) continue;
      roles_.sequence.push_back({*value, dim.axis});
      because("sequence: axis {} of '{}', from its symbolic dimension '{}'", dim.axis, dim.input,
              dim.name);
    }
    // A second sequence (a decoder's) may have a dimension of another name.
    const auto is_tagged = [&](ValueId input) {
      return std::ranges::any_of(roles_.sequence,
                                 [&](const DimTag& tag) { return tag.value == input; });
    };
    for (ValueId input : graph_.inputs()) {
      if (is_tagged(input) || !is_named_like_tokens(input)) continue;
      const int axis = is_convolved(input) ? 2 : 1;  // a convolution's operand has channels first
      roles_.sequence.push_back({input, axis});
      because("sequence: axis {} of '{}', from the input's {}", axis, graph_.name_of(input),
              lies_beside_tokens(input) ? "shape, that of tokens" : "name");
    }
    if (!roles_.sequence.empty()) return;
    for (ValueId input : graph_.inputs()) {
      const ir::Value& value = graph_.value(input);
      if (!is_data_input(input) || ir::is_floating(value.type.dtype) || value.type.rank() != 2 ||
          broadcasts_over_tokens(value)) {
        continue;
      }
      roles_.sequence.push_back({input, 1});
      because("sequence: axis 1 of '{}', an integer matrix", value.name);
    }
  }

  bool is_sequence(const DimTag& tag) const {
    return std::ranges::find(roles_.sequence, tag) != roles_.sequence.end();
  }

  void find_batch() {
    if (!options_.batch.empty()) {
      for (const std::string& text : options_.batch) {
        const DimTag tag = parse_tag(graph_, text, "--batch");
        check_is_no_parameter(tag, text, "--batch");
        roles_.batch.push_back(tag);
      }
      because("batch: as given by --batch");
      return;
    }
    for (const NamedDim& dim : options_.named_dims) {
      const auto value = graph_.find(dim.input);
      if (value && names_batch(dim.name) && is_data_input(*value))
        roles_.batch.push_back({*value, dim.axis});
    }
    for (const DimTag& tag : roles_.sequence) {
      const bool is_input = graph_.value(tag.value).kind == ir::ValueKind::kInput;
      if (is_input && tag.dim >= 1) roles_.batch.push_back({tag.value, 0});
    }
    if (!roles_.batch.empty()) {
      find_batch_of_others();
    } else {
      for (ValueId input : graph_.inputs()) {
        if (!is_data_input(input) || graph_.type(input).rank() < 2) continue;
        if (!is_sequence({input, 0})) {
          roles_.batch.push_back({input, 0});
        } else if (!ir::is_floating(graph_.type(input).dtype)) {
          roles_.batch.push_back({input, 1});  // sequence first
        }
      }
    }
    std::ranges::sort(roles_.batch);
    const auto repeated = std::ranges::unique(roles_.batch);
    roles_.batch.erase(repeated.begin(), repeated.end());
    for (const DimTag& tag : roles_.batch) {
      because("batch: axis {} of '{}'", tag.dim, graph_.name_of(tag.value));
    }
  }

  // Inputs of which nothing is known yet, such as what a second tower reads: axis 0 is the batch
  // where it is as long, or called the same, as the batch of those that are known.
  void find_batch_of_others() {
    const std::vector<DimTag> known = roles_.batch;
    const auto is_known = [&](ValueId input) {
      const auto of_input = [input](const DimTag& tag) { return tag.value == input; };
      return std::ranges::any_of(known, of_input) || std::ranges::any_of(roles_.sequence, of_input);
    };
    for (ValueId input : graph_.inputs()) {
      if (!is_data_input(input) || graph_.type(input).rank() < 2 || is_known(input)) continue;
      if (std::ranges::all_of(known, [&](const DimTag& tag) { return is_like({input, 0}, tag); })) {
        roles_.batch.push_back({input, 0});
      }
    }
  }

  // By name where both have one; by extent where neither has, and no sequence is as long.
  bool is_like(const DimTag& tag, const DimTag& batch) const {
    const std::string name = symbol_of(tag);
    if (name != symbol_of(batch)) return false;
    if (!name.empty()) return true;
    const int64_t extent = extent_of(batch);
    return extent > 1 && extent_of(tag) == extent &&
           std::ranges::none_of(roles_.sequence, [&](const DimTag& sequence) {
             return extent_of(sequence) == extent;
           });
  }

  int64_t extent_of(const DimTag& tag) const {
    return graph_.shape(tag.value)[static_cast<size_t>(tag.dim)];
  }

  std::string symbol_of(const DimTag& tag) const {
    for (const NamedDim& dim : options_.named_dims) {
      if (dim.axis == tag.dim && dim.input == graph_.name_of(tag.value)) return dim.name;
    }
    return {};
  }

  const ir::Graph& graph_;
  const RoleOptions& options_;
  Roles roles_;
};

}  // namespace

Roles detect_roles(const ir::Graph& graph, const RoleOptions& options) {
  return Detector(graph, options).detect();
}

}  // namespace autosp::shard
