#include "cuda/cudnn_attention.h"

// Finds cuDNN's functions in the library that is opened when they are used.
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#include <cudnn_frontend.h>

#include "base/error.h"
#include "cuda/library.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace autosp::cuda {

namespace {

namespace fe = cudnn_frontend;

// Names of tensors, as cuDNN tells them apart.
enum Uid : int64_t {
  kQuery = 1,
  kKey,
  kValue,
  kOutput,
  kStatistics,
  kOutputGradient,
  kQueryGradient,
  kKeyGradient,
  kValueGradient,
};

std::vector<int64_t> row_major_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t k = shape.size(); k-- > 1;) strides[k - 1] = strides[k] * shape[k];
  return strides;
}

using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

class AttentionGraph {
 public:
  explicit AttentionGraph(const AttentionShape& shape) : shape_(shape) {
    graph_.set_io_data_type(shape.type == ir::DataType::kFloat16 ? fe::DataType_t::HALF
                                                                 : fe::DataType_t::BFLOAT16);
    graph_.set_intermediate_data_type(fe::DataType_t::FLOAT);
    graph_.set_compute_data_type(fe::DataType_t::FLOAT);
  }

  fe::graph::Graph& graph() { return graph_; }

  // After the architecture has been set, if it is to be.
  void add_nodes() { shape_.backward ? add_backward() : add_forward(); }

 private:
  std::vector<int64_t> of_queries(int64_t width) const {
    return {shape_.batch, shape_.query_heads, shape_.queries, width};
  }
  std::vector<int64_t> of_keys(int64_t width) const {
    return {shape_.batch, shape_.kv_heads, shape_.keys, width};
  }

  Tensor input(Uid uid, const std::vector<int64_t>& shape) {
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_name(std::to_string(uid))
                             .set_uid(uid)
                             .set_dim(shape)
                             .set_stride(row_major_strides(shape)));
  }
  Tensor statistics() {
    const std::vector<int64_t> shape = of_queries(1);
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_name("statistics")
                             .set_uid(kStatistics)
                             .set_dim(shape)
                             .set_stride(row_major_strides(shape))
                             .set_data_type(fe::DataType_t::FLOAT));
  }
  static void output(const Tensor& tensor, Uid uid, const std::vector<int64_t>& shape) {
    tensor->set_output(true).set_uid(uid).set_dim(shape).set_stride(row_major_strides(shape));
  }

  template <typename Options>
  void set_band(Options& options) const {
    if (!shape_.band.before && !shape_.band.after) return;
    options.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT);
    if (shape_.band.before) options.set_diagonal_band_left_bound(*shape_.band.before);
    if (shape_.band.after) options.set_diagonal_band_right_bound(*shape_.band.after);
  }

  void add_forward() {
    auto options = fe::graph::SDPA_attributes()
                       .set_name("attention")
                       .set_generate_stats(shape_.keeps_statistics)
                       .set_attn_scale(shape_.scale);
    set_band(options);
    auto [o, statistics] =
        graph_.sdpa(input(kQuery, of_queries(shape_.width)), input(kKey, of_keys(shape_.width)),
                    input(kValue, of_keys(shape_.value_width)), options);
    output(o, kOutput, of_queries(shape_.value_width));
    if (statistics == nullptr) return;
    output(statistics, kStatistics, of_queries(1));
    statistics->set_data_type(fe::DataType_t::FLOAT);
  }

  void add_backward() {
    auto options = fe::graph::SDPA_backward_attributes()
                       .set_name("attention gradient")
                       .set_attn_scale(shape_.scale);
    options.set_deterministic_algorithm(shape_.ordered);
    set_band(options);
    const Tensor q = input(kQuery, of_queries(shape_.width));
    const Tensor k = input(kKey, of_keys(shape_.width));
    const Tensor v = input(kValue, of_keys(shape_.value_width));
    const Tensor o = input(kOutput, of_queries(shape_.value_width));
    const Tensor d = input(kOutputGradient, of_queries(shape_.value_width));
    const auto [dq, dk, dv] = graph_.sdpa_backward(q, k, v, o, d, statistics(), options);
    output(dq, kQueryGradient, of_queries(shape_.width));
    output(dk, kKeyGradient, of_keys(shape_.width));
    output(dv, kValueGradient, of_keys(shape_.value_width));
  }

  AttentionShape shape_;
  fe::graph::Graph graph_;
};

// Why cuDNN cannot be used in this process; opened once. Its front end opens CUDA's runtime by
// name alone, which finds what is open already.
const std::string& problem_of_cudnn() {
  static const std::string kProblem = []() -> std::string {
    for (const Library* library : {&cudnn(), &cudart()}) {
      if (library->handle() == nullptr) return library->name() + " was not found";
    }
    fe::cudnn_dlhandle = cudnn().handle();
    setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", "libcudart.so.13", 0);  // not an older one beside it
    return "";
  }();
  return kProblem;
}

class Planned final : public CudnnAttention {
 public:
  explicit Planned(const AttentionShape& shape)
      : shape_(shape), graph_(std::make_unique<AttentionGraph>(shape)) {}
  ~Planned() override {
    graph_.reset();  // its plans are the handle's
    if (handle_ != nullptr) fe::detail::destroy_handle(handle_);
  }
  Planned(const Planned&) = delete;
  Planned& operator=(const Planned&) = delete;

  std::string build() try {
    if (fe::detail::create_handle(&handle_) != CUDNN_STATUS_SUCCESS) return "cuDNN does not start";
    graph_->add_nodes();
    auto status = graph_->graph().build(handle_, {fe::HeurMode_t::A});
    return status.is_bad() ? status.get_message() : "";
  } catch (const std::exception& error) {
    return error.what();
  }

  int64_t workspace_bytes() const override {
    int64_t bytes = 0;
    return graph_->graph().get_workspace_size(bytes).is_bad() ? 0 : bytes;
  }

  void run(const AttentionArrays& arrays, void* workspace, cudaStream_t stream) override {
    const auto in = [](const void* pointer) {
      return const_cast<void*>(pointer);  // NOLINT: only read
    };
    std::unordered_map<int64_t, void*> pointers = {{kQuery, in(arrays.query)},
                                                   {kKey, in(arrays.key)},
                                                   {kValue, in(arrays.value)},
                                                   {kOutput, arrays.output}};
    if (arrays.statistics != nullptr) pointers[kStatistics] = arrays.statistics;
    if (shape_.backward) {
      pointers[kOutputGradient] = in(arrays.output_gradient);
      pointers[kQueryGradient] = arrays.query_gradient;
      pointers[kKeyGradient] = arrays.key_gradient;
      pointers[kValueGradient] = arrays.value_gradient;
    }
    fe::detail::set_stream(handle_, stream);
    auto status = graph_->graph().execute(handle_, pointers, workspace);
    if (status.is_good()) return;
    throw Error("cuDNN: attention: {}", status.get_message())
        .note("cuDNN had a plan for it, which failed")
        .help("set AUTOSP_CUDNN=0 for this program's own kernel, or run with --device cpu");
  }

 private:
  AttentionShape shape_;
  std::unique_ptr<AttentionGraph> graph_;
  cudnnHandle_t handle_ = nullptr;
};

}  // namespace

std::unique_ptr<CudnnAttention> plan_attention(const AttentionShape& shape, std::string& reason) {
  reason = problem_of_cudnn();
  if (!reason.empty()) return nullptr;
  auto planned = std::make_unique<Planned>(shape);
  reason = planned->build();
  if (!reason.empty()) return nullptr;
  return planned;
}

std::string check_attention(const AttentionShape& shape, int architecture,
                            const std::string& properties) {
  if (!problem_of_cudnn().empty()) return problem_of_cudnn();
  const auto device = std::make_shared<fe::DeviceProperties>();
  auto status = device->deserialize({properties.begin(), properties.end()});
  if (status.is_bad()) return status.get_message();
  AttentionGraph attention(shape);
  fe::graph::Graph& graph = attention.graph();
  graph.set_sm_version(architecture);
  graph.set_device_properties(device);
  attention.add_nodes();
  status = graph.validate();
  if (status.is_good()) status = graph.build_operation_graph();
  if (status.is_good()) status = graph.create_execution_plans({fe::HeurMode_t::A});
  if (status.is_good()) status = graph.check_support();
  return status.is_bad() ? status.get_message() : "";
}

}  // namespace autosp::cuda
