#include "executor/device_run.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "executor/rank_device.h"
#include "executor/step_records.h"
#include "ir/operator_traits.h"

namespace autosp::executor {

namespace {

// Collectives work on device memory for as long as this lives.
class DeviceCollectives {
 public:
  DeviceCollectives(Communicator* exchange, Device& device) : exchange_(exchange) {
    if (exchange_ != nullptr) exchange_->use(&device);
  }
  ~DeviceCollectives() {
    if (exchange_ != nullptr) exchange_->use(nullptr);
  }
  DeviceCollectives(const DeviceCollectives&) = delete;
  DeviceCollectives& operator=(const DeviceCollectives&) = delete;

 private:
  Communicator* exchange_;
};

}  // namespace

DeviceRun::DeviceRun(const Program& program, DeviceSessionParts& shared)
    : program_(program),
      graph_(program.graph()),
      shared_(shared),
      device_(shared.device),
      exchange_(shared.exchange),
      memory_(shared.memory),
      feeds_(shared.device, shared.memory),
      timeline_(shared.device, graph_, shared.communicator.rank(), shared.options),
      steps_(plan_streams(program, exchange_ != nullptr)) {
  place_sources();
  make_events();
}

void DeviceRun::upload_constants() {
  for (const auto& [source, offset] : offsets_) {
    const int64_t bytes = graph_.type(source).num_bytes();
    if (bytes == 0 || graph_.value(source).kind == ir::ValueKind::kInput) continue;
    device_.upload(StreamId::kCompute, memory_.at(offset), host_address(source), bytes);
  }
}

RankResult DeviceRun::run(const Arrays& feeds,
                          const std::function<bool(const ir::Output&)>& wanted) {
  set_inputs(feeds);
  const DeviceCollectives collectives(exchange_, device_);
  on_host_.clear();
  result_ = {};
  result_.rank = shared_.communicator.rank();
  result_.planned = program_.memory();
  std::vector<double> seconds;
  const int repeat = shared_.options.repeat;
  for (int k = 0; k < repeat; ++k) seconds.push_back(run_step());
  std::ranges::nth_element(seconds, seconds.begin() + (repeat - 1) / 2);
  result_.seconds = seconds[static_cast<size_t>(repeat - 1) / 2];
  result_.arena_touched = program_.memory().arena;
  result_.measured_peak = result_.arena_touched + shared_.communicator.staging_bytes();
  tell_notices();
  collect_outputs(wanted);
  return std::move(result_);
}

const void* DeviceRun::host_address(ValueId source) {
  const ir::Value& value = graph_.value(source);
  if (value.kind == ir::ValueKind::kInput) {
    return feeds_.on_host(value.name).bytes().data();
  }
  if (value.kind == ir::ValueKind::kConstant) return value.constant.bytes().data();
  return shared_.files.data(value);
}

void DeviceRun::set_inputs(const Arrays& feeds) {
  for (ValueId input : graph_.inputs()) {
    if (program_.place(input).storage != Storage::kInput) continue;  // kept
    const std::string& name = graph_.name_of(input);
    feeds_.set(name, feeds.at(name));
  }
  device_.synchronize();
}

void DeviceRun::place_sources() {
  for (size_t k = 0; k < steps_.size(); ++k) {
    if (!steps_[k].runs || steps_[k].on_host) continue;
    for (ValueId id : graph_.nodes()[k].inputs) {
      if (!id || program_.place(id).storage == Storage::kArena) continue;
      const ValueId source = program_.place(id).root;
      if (offsets_.contains(source)) continue;
      const std::string& name = graph_.name_of(source);
      const int64_t bytes = graph_.type(source).num_bytes();
      offsets_[source] = program_.place(id).storage == Storage::kInput ? feeds_.place(name, bytes)
                                                                       : memory_.add(bytes);
    }
  }
}

void DeviceRun::make_events() {
  done_.resize(steps_.size());
  for (size_t k = 0; k < steps_.size(); ++k) {
    if (steps_[k].awaited) done_[k] = device_.make_event();
    if (steps_[k].exchanges) last_exchange_ = device_.make_event();
  }
}

// Seconds.
double DeviceRun::run_step() {
  const auto begin = Clock::now();
  timeline_.begin(captured_ != nullptr);
  if (has_run_ && shared_.yet_to_run == 0 && !has_tried_to_capture_) capture_step();
  if (captured_ != nullptr) {
    device_.replay(*captured_);
  } else {
    queue_step();
  }
  device_.synchronize();
  if (!has_run_) --shared_.yet_to_run;
  has_run_ = true;
  const double seconds = seconds_since(begin);
  check_faults();
  result_.collectives = timeline_.read();
  return seconds;
}

void DeviceRun::capture_step() {
  has_tried_to_capture_ = true;
  if (!all_ranks(may_be_captured())) return;
  captured_ = device_.capture([&] { queue_step(); });
  if (!all_ranks(captured_ != nullptr) && captured_ != nullptr) {
    captured_ = nullptr;
    result_.notices.emplace_back(
        "repeated steps are queued anew, not as one graph: another rank could not capture them");
  }
  if (captured_ == nullptr) timeline_.forget();
}

// Whether it is so on all ranks between which NCCL exchanges: a collective is captured by all of
// its ranks or by none ("Using NCCL with CUDA Graphs" in NCCL's user guide).
bool DeviceRun::all_ranks(bool own) {
  Communicator& host = shared_.communicator;
  if (exchange_ == nullptr || exchange_ == &host) return own;
  const auto size = static_cast<size_t>(host.size());
  std::vector<int> group(size);
  std::iota(group.begin(), group.end(), 0);
  const auto mine = static_cast<uint8_t>(own);
  std::vector<uint8_t> all(size);
  host.all_gather({"whether all can capture the step", "AllGather", group, ir::DataType::kUInt8},
                  {&mine, {1}}, {all.data(), {host.size()}}, 0, std::vector<int64_t>(size, 1));
  return std::ranges::find(all, 0) == all.end();
}

void DeviceRun::check_faults() {
  int32_t fault = 0;
  device_.download(StreamId::kCompute, &fault, reinterpret_cast<const std::byte*>(device_.faults()),
                   sizeof(fault));
  if (fault == 0) return;
  const ir::Node& node = graph_.nodes()[static_cast<size_t>(fault) - 1];
  const bool divides = node.op == "Div" || node.op == "Mod";
  throw in_step(divides ? Error("integer division by zero")
                        : Error("an index is outside the axis that it is for"),
                graph_, node, result_.rank);
}

// Nothing on the host, and nothing that another rank's thread queues.
bool DeviceRun::may_be_captured() const {
  if (shared_.options.events != nullptr) return false;
  for (size_t k = 0; k < steps_.size(); ++k) {
    if (steps_[k].on_host || (steps_[k].exchanges && meets_threads(k))) return false;
  }
  return true;
}

// A group of one meets nobody.
bool DeviceRun::meets_threads(size_t k) const {
  return exchange_ == &shared_.communicator &&
         graph_.nodes()[k].attributes.get_ints("group").size() > 1;
}

void DeviceRun::queue_step() {
  bool exchanges = false;
  for (size_t k = 0; k < steps_.size(); ++k) {
    const StreamStep& step = steps_[k];
    if (!step.runs) continue;
    const StreamId stream = step.exchanges ? StreamId::kExchange : StreamId::kCompute;
    if (step.waits_for >= 0) device_.wait(stream, *done_[static_cast<size_t>(step.waits_for)]);
    run_node(k, stream);
    if (step.awaited) device_.record(stream, *done_[k]);
    exchanges = exchanges || step.exchanges;
  }
  if (!exchanges) return;
  device_.record(StreamId::kExchange, *last_exchange_);
  device_.wait(StreamId::kCompute, *last_exchange_);
}

void DeviceRun::run_node(size_t k, StreamId stream) {
  const ir::Node& node = graph_.nodes()[k];
  try {
    if (steps_[k].on_host) {
      run_on_host(k);
    } else {
      run_there(k, stream);
    }
  } catch (Error& error) {
    throw in_step(error, graph_, node, result_.rank);
  }
}

void DeviceRun::run_there(size_t k, StreamId stream) {
  const ir::Node& node = graph_.nodes()[k];
  operands_.clear();
  results_.clear();
  for (ValueId id : node.inputs) {
    operands_.push_back(
        id ? reference::Operand{graph_.type(id).dtype, &graph_.shape(id), device_address(id)}
           : reference::Operand{});
  }
  for (ValueId id : node.outputs) {
    results_.push_back(
        id ? reference::Result{graph_.type(id).dtype, &graph_.shape(id), device_address(id)}
           : reference::Result{});
  }
  const int scratch = program_.workspace(k);
  const KernelCall call{{node, operands_, results_},
                        scratch < 0 ? nullptr : arena_address(scratch),
                        exchange_ != nullptr ? exchange_ : &shared_.communicator,
                        &shared_.workers,
                        &device_,
                        stream,
                        &graph_};
  timeline_.add(k, stream, [&] { program_.kernel(k)(call); });
}

// Once the compute stream has come this far: operands to the host, results back.
void DeviceRun::run_on_host(size_t k) {
  const ir::Node& node = graph_.nodes()[k];
  const auto begin = Clock::now();
  std::vector<ir::Tensor> staged;  // keeps the bytes that operands and results point to
  staged.reserve(node.inputs.size() + node.outputs.size() + 1);
  operands_.clear();
  results_.clear();
  for (ValueId id : node.inputs) {
    operands_.push_back(
        id ? reference::Operand{graph_.type(id).dtype, &graph_.shape(id), on_host(id, staged)}
           : reference::Operand{});
  }
  for (ValueId id : node.outputs) {
    if (id) staged.emplace_back(graph_.type(id));
    results_.push_back(id ? reference::Result{graph_.type(id).dtype, &graph_.shape(id),
                                              staged.back().mutable_bytes()}
                          : reference::Result{});
  }
  const int64_t scratch = program_.kernel(k).workspace_bytes;
  staged.emplace_back(ir::Type{ir::DataType::kUInt8, {scratch}});
  program_.kernel(k)({{node, operands_, results_},
                      scratch > 0 ? staged.back().mutable_bytes() : nullptr,
                      &shared_.communicator,
                      &shared_.workers});
  for (size_t r = 0; r < node.outputs.size(); ++r) {
    const ValueId id = node.outputs[r];
    const int64_t bytes = id ? graph_.type(id).num_bytes() : 0;
    if (bytes > 0) {
      device_.upload(StreamId::kCompute, device_address(id), results_[r].data, bytes);
    }
  }
  if (!ir::is_collective(node)) on_host_.insert(node.op);
  timeline_.add_on_host(node, begin);
}

const void* DeviceRun::on_host(ValueId id, std::vector<ir::Tensor>& staged) {
  const Place& place = program_.place(id);
  if (place.storage != Storage::kArena) return host_address(place.root);
  staged.emplace_back(graph_.type(id));
  const int64_t bytes = graph_.type(id).num_bytes();
  if (bytes > 0) {
    device_.download(StreamId::kCompute, staged.back().mutable_bytes(), device_address(id), bytes);
  }
  return staged.back().bytes().data();
}

std::byte* DeviceRun::arena_address(int buffer) const {
  return memory_.at(program_.buffers()[static_cast<size_t>(buffer)].offset);
}

std::byte* DeviceRun::device_address(ValueId id) const {
  const Place& place = program_.place(id);
  return place.storage == Storage::kArena ? arena_address(place.buffer)
                                          : memory_.at(offsets_.at(place.root));
}

void DeviceRun::tell_notices() {
  if (!on_host_.empty()) {
    result_.notices.push_back(fmt::format("without a kernel for the device, run on the host: {}",
                                          fmt::join(on_host_, ", ")));
  }
  if (exchange_ == nullptr && shared_.communicator.size() > 1 &&
      !shared_.options.device->notice().empty()) {
    result_.notices.push_back(
        fmt::format("collectives go through host memory: {}", shared_.options.device->notice()));
  }
  std::ranges::copy(device_.notices(), std::back_inserter(result_.notices));
}

void DeviceRun::collect_outputs(const std::function<bool(const ir::Output&)>& wanted) {
  std::map<int, ir::Tensor> copied;  // by buffer: several outputs may be one
  for (const ir::Output& output : graph_.outputs()) {
    if (!wanted(output)) continue;
    const Place& place = program_.place(output.value);
    if (place.storage != Storage::kArena) {
      result_.outputs[output.name] = source_on_host(output.value);
      continue;
    }
    ir::Tensor& tensor = copied[place.buffer];
    if (tensor.dtype() == ir::DataType::kUndefined) tensor = downloaded(output.value);
    result_.outputs[output.name] = tensor.reshaped(graph_.type(output.value).shape);
  }
}

// Of an output that is an input, a constant or external data.
ir::Tensor DeviceRun::source_on_host(ValueId id) {
  const Place& place = program_.place(id);
  const ir::Type& type = graph_.type(id);
  if (place.storage == Storage::kInput) {
    const std::string& name = graph_.name_of(place.root);
    return feeds_.on_host(name).reshaped(type.shape);
  }
  const auto* bytes = static_cast<const std::byte*>(host_address(place.root));
  return {type, {bytes, static_cast<size_t>(type.num_bytes())}};
}

ir::Tensor DeviceRun::downloaded(ValueId id) {
  ir::Tensor tensor(graph_.type(id));
  const int64_t bytes = graph_.type(id).num_bytes();
  if (bytes > 0) {
    device_.download(StreamId::kCompute, tensor.mutable_bytes(), device_address(id), bytes);
  }
  return tensor;
}

}  // namespace autosp::executor
