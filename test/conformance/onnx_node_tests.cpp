// The reference kernels against ONNX's own node tests, one test per operator with a kernel.
//
// scripts/setup puts the tests into .deps/onnx-node-tests: a folder per case with a model of one
// node, its inputs and the outputs ONNX expects. The models come in through this project's
// importer. What cannot be run is counted by its reason, so that nothing is left out in silence.
#include <gtest/gtest.h>
#include <onnx/onnx_pb.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>

#include "executor/run.h"
#include "ir/operator_traits.h"
#include "onnx/model.h"
#include "reference/kernels.h"
#include "support/devices.h"
#include "support/run_graph.h"
#include "support/source_folder.h"

namespace autosp {
namespace {

namespace fs = std::filesystem;

const fs::path kFolder = test::source_folder() / ".deps/onnx-node-tests";

// Cases of operators with kernels that these kernels do not have to pass.
struct Exception {
  std::string_view name;  // prefix of the case's name
  std::string_view reason;
};
constexpr std::string_view kOlderAttention =
    "cases of ONNX 1.19: soft cap and mask have changed places since";
constexpr Exception kExceptions[] = {
    {"test_training_dropout", "expects numpy's random stream"},
    {"test_adam_multiple", "its values were computed with an epsilon that its node does not state"},
    {"test_averagepool_2d_ceil_last_window_starts_on_pad", "its values have four digits"},
    {"test_bernoulli", "expects numpy's random stream"},
    {"test_constant_of_shape_string", "strings"},
    {"test_attention_3d_with_past_and_present_qk_matmul_bias", kOlderAttention},
    {"test_attention_3d_with_past_and_present_qk_matmul_softcap", kOlderAttention},
    {"test_attention_4d_with_past_and_present_qk_matmul_bias", kOlderAttention},
    {"test_attention_4d_with_qk_matmul_bias", kOlderAttention},
    {"test_attention_4d_with_qk_matmul_softcap", kOlderAttention},
};

template <typename Message>
Message parse(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  Message message;
  if (!message.ParseFromIstream(&file)) throw Error("{}: not readable", path.string());
  return message;
}

bool is_supported(int32_t type) {
  switch (static_cast<onnx::TensorProto::DataType>(type)) {
    case onnx::TensorProto::FLOAT:
    case onnx::TensorProto::DOUBLE:
    case onnx::TensorProto::FLOAT16:
    case onnx::TensorProto::BFLOAT16:
    case onnx::TensorProto::INT64:
    case onnx::TensorProto::INT32:
    case onnx::TensorProto::INT16:
    case onnx::TensorProto::INT8:
    case onnx::TensorProto::UINT64:
    case onnx::TensorProto::UINT32:
    case onnx::TensorProto::UINT16:
    case onnx::TensorProto::UINT8:
    case onnx::TensorProto::BOOL:
      return true;
    default:
      return false;
  }
}

bool has_supported_types(const onnx::GraphProto& graph) {
  const auto supported = [](const auto& values) {
    return std::ranges::all_of(values, [](const onnx::ValueInfoProto& value) {
      return value.type().has_tensor_type() && is_supported(value.type().tensor_type().elem_type());
    });
  };
  return supported(graph.input()) && supported(graph.output());
}

ir::Tensor tensor_of(const onnx::TensorProto& proto) {
  ir::Type type{static_cast<ir::DataType>(proto.data_type()),
                {proto.dims().begin(), proto.dims().end()}};
  const std::string& raw = proto.raw_data();
  if (static_cast<int64_t>(raw.size()) == type.num_bytes()) {
    return ir::Tensor(type, std::as_bytes(std::span(raw)));
  }
  throw Error("tensor {} is not stored as raw data", proto.name());
}

// The tensors of a data set by the names of the graph's inputs or outputs.
template <typename Values>
test::Tensors read_tensors(const fs::path& folder, const std::string& kind, const Values& values) {
  test::Tensors tensors;
  for (int k = 0; k < values.size(); ++k) {
    const fs::path path = folder / (kind + "_" + std::to_string(k) + ".pb");
    if (fs::exists(path)) tensors[values[k].name()] = tensor_of(parse<onnx::TensorProto>(path));
  }
  return tensors;
}

ir::Graph import(const onnx::ModelProto& model) {
  const fs::path path =
      fs::path(testing::TempDir()) / ("node_test_" + std::to_string(::getpid()) + ".onnx");
  std::ofstream file(path, std::ios::binary);
  model.SerializeToOstream(&file);
  file.close();
  ir::Graph result = onnx_io::import_model(path);
  fs::remove(path);
  return result;
}

// The model with its inputs as constants, for operators whose result shapes they decide.
ir::Graph import_with_constants(onnx::ModelProto model, const fs::path& data) {
  onnx::GraphProto& graph = *model.mutable_graph();
  for (int k = 0; k < graph.input_size(); ++k) {
    auto* constant = graph.add_initializer();
    *constant = parse<onnx::TensorProto>(data / ("input_" + std::to_string(k) + ".pb"));
    constant->set_name(graph.input(k).name());
  }
  graph.clear_input();
  return import(model);
}

ir::Graph import_case(const fs::path& folder, onnx::ModelProto model) {
  // The cases of Not are of operator set 1, which the importer does not take; it is what it was.
  bool has_standard = false;
  for (auto& opset : *model.mutable_opset_import()) {
    if (!opset.domain().empty()) continue;
    opset.set_version(std::max<int64_t>(opset.version(), 7));
    has_standard = true;
  }
  // Those of training operators name no other domain than theirs.
  if (!has_standard) model.add_opset_import()->set_version(ir::kOpset);
  try {
    return import(model);
  } catch (const Error&) {
    return import_with_constants(model, folder / "test_data_set_0");
  }
}

ir::Attributes attributes_of(const onnx::NodeProto& node) {
  ir::Attributes attributes;
  for (const onnx::AttributeProto& a : node.attribute()) {
    switch (a.type()) {
      case onnx::AttributeProto::INT:
        attributes.set(a.name(), static_cast<int64_t>(a.i()));
        break;
      case onnx::AttributeProto::FLOAT:
        attributes.set(a.name(), a.f());
        break;
      case onnx::AttributeProto::STRING:
        attributes.set(a.name(), a.s());
        break;
      case onnx::AttributeProto::INTS:
        attributes.set(a.name(), std::vector<int64_t>(a.ints().begin(), a.ints().end()));
        break;
      default:
        throw Error("attribute {} is of no type that these cases have", a.name());
    }
  }
  return attributes;
}

// The node as it stands, for operators that the importer writes in terms of others.
ir::Graph as_it_stands(const onnx::GraphProto& model, const test::Tensors& feeds,
                       const test::Tensors& want) {
  const onnx::NodeProto& node = model.node(0);
  ir::Graph graph;
  std::vector<ValueId> inputs;
  for (const std::string& name : node.input()) {
    inputs.push_back(name.empty() ? ValueId() : graph.add_input(name, feeds.at(name).type()));
  }
  std::vector<ir::Type> results;
  for (const std::string& name : node.output()) {
    results.push_back(name.empty() ? ir::Type{} : want.at(name).type());
  }
  const NodeId id =
      graph.add_node(node.op_type(), inputs, results, attributes_of(node), node.domain());
  for (int k = 0; k < node.output_size(); ++k) {
    if (!node.output(k).empty()) {
      graph.add_output(node.output(k), graph.node(id).outputs[static_cast<size_t>(k)]);
    }
  }
  return graph;
}

// In units of the type's precision; the expected values were rounded too.
double tolerance(ir::DataType dtype) {
  switch (dtype) {
    case ir::DataType::kFloat64:
    case ir::DataType::kFloat32:
      return 1e-5;
    case ir::DataType::kFloat16:
      return 2e-3;
    case ir::DataType::kBFloat16:
      return 1.6e-2;
    default:
      return 0;
  }
}

std::string difference(const ir::Tensor& got, const ir::Tensor& want) {
  if (got.type() != want.type()) {
    return ir::to_string(got.type()) + " instead of " + ir::to_string(want.type());
  }
  for (int64_t i = 0; i < want.num_elements(); ++i) {
    const double a = got.value_as_double(i);
    const double b = want.value_as_double(i);
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    if (std::abs(a - b) <= tolerance(want.dtype()) * std::max(1e-2, std::abs(b))) continue;
    return fmt::format("element {} is {}, not {}", i, a, b);
  }
  return "";
}

std::string difference(const test::Tensors& got, const test::Tensors& want) {
  for (const auto& [name, tensor] : want) {
    const std::string wrong = difference(got.at(name), tensor);
    if (!wrong.empty()) return fmt::format("{}: {}", name, wrong);
  }
  return "";
}

// What runs a case's graph.
using Run = std::function<test::Tensors(const ir::Graph&, const test::Tensors&)>;

// What is wrong with one case, or "".
std::string run_case(const fs::path& folder, const onnx::ModelProto& model, const Run& run) {
  try {
    const fs::path data = folder / "test_data_set_0";
    const auto feeds = read_tensors(data, "input", model.graph().input());
    const auto want = read_tensors(data, "output", model.graph().output());
    const ir::Graph graph = import_case(folder, model);
    std::string wrong = difference(run(graph, feeds), want);
    const std::string& op = model.graph().node(0).op_type();
    const bool has_kernel = reference::find_kernel(model.graph().node(0).domain(), op) != nullptr;
    if (has_kernel && wrong.empty() && !graph.nodes().empty() &&
        test::count_nodes(graph, op) == 0) {
      wrong = difference(run(as_it_stands(model.graph(), feeds, want), feeds), want);
    }
    return wrong;
  } catch (const std::exception& error) {
    return error.what();
  }
}

void expect_all_cases_pass(const std::string& op, const Run& run) {
  ASSERT_TRUE(fs::is_directory(kFolder)) << kFolder << " is missing: run scripts/setup";
  std::set<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(kFolder)) folders.insert(entry.path());
  int passed = 0;
  int other_types = 0;
  int excepted = 0;
  for (const fs::path& folder : folders) {
    const auto model = parse<onnx::ModelProto>(folder / "model.onnx");
    if (model.graph().node_size() != 1 || model.graph().node(0).op_type() != op) continue;
    const std::string& domain = model.graph().node(0).domain();
    if (!domain.empty() && domain != ir::kTrainingDomain) continue;
    const std::string name = folder.filename().string();
    const bool exception = std::ranges::any_of(
        kExceptions, [&](const Exception& e) { return name.starts_with(e.name); });
    if (exception) {
      ++excepted;
    } else if (!has_supported_types(model.graph())) {
      ++other_types;
    } else if (const std::string wrong = run_case(folder, model, run); !wrong.empty()) {
      ADD_FAILURE() << name << ": " << wrong;
    } else {
      ++passed;
    }
  }
  testing::Test::RecordProperty("passed", passed);
  std::cout << fmt::format("{}: {} passed, {} of other element types, {} excepted\n", op, passed,
                           other_types, excepted);
}

class OnnxNodeTests : public testing::TestWithParam<std::string> {};

TEST_P(OnnxNodeTests, AllCasesOfTheOperatorPass) {
  expect_all_cases_pass(GetParam(), [](const ir::Graph& graph, const test::Tensors& feeds) {
    return test::run_graph(graph, feeds);
  });
}

// On devices: what one has no kernel for runs on the host, as it would for a user.
class OnnxNodeTestsOnDevices : public testing::TestWithParam<std::tuple<std::string, std::string>> {
};

TEST_P(OnnxNodeTestsOnDevices, AllCasesOfTheOperatorPass) {
  const auto& [device, op] = GetParam();
  const test::FoundDevice found = test::find_device(device);
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  expect_all_cases_pass(op, [&](const ir::Graph& graph, const test::Tensors& feeds) {
    return executor::run_in_threads({std::make_shared<const ir::Graph>(graph)}, {feeds},
                                    {.threads_per_rank = 1, .backend = found.backend})
        .ranks[0]
        .outputs;
  });
}

INSTANTIATE_TEST_SUITE_P(Devices, OnnxNodeTestsOnDevices,
                         testing::Combine(testing::ValuesIn(test::device_names()),
                                          testing::ValuesIn(reference::operators_with_kernels())),
                         [](const auto& parameters) {
                           return std::get<0>(parameters.param) + "_" +
                                  std::get<1>(parameters.param);
                         });

INSTANTIATE_TEST_SUITE_P(Reference, OnnxNodeTests,
                         testing::ValuesIn(reference::operators_with_kernels()),
                         [](const auto& parameters) { return parameters.param; });

// Operators without a kernel: the importer puts their function bodies in their place.
INSTANTIATE_TEST_SUITE_P(InlinedFunctions, OnnxNodeTests,
                         testing::Values("Attention", "RMSNormalization", "RotaryEmbedding",
                                         "Swish", "MeanVarianceNormalization", "CenterCropPad",
                                         "AffineGrid", "BlackmanWindow"),
                         [](const auto& parameters) { return parameters.param; });

}  // namespace
}  // namespace autosp
