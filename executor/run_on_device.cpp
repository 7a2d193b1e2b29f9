#include "executor/run_on_device.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "executor/device_memory.h"
#include "executor/device_values.h"
#include "executor/memory.h"
#include "executor/rank_device.h"
#include "executor/step_records.h"
#include "executor/stream_plan.h"
#include "executor/workers.h"
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

// What the programs of a rank share.
struct Shared {
  Communicator& communicator;  // of host memory
  const ExecuteOptions options;
  Device& device;
  Communicator* exchange;  // of device memory, or null
  DeviceMemory memory;
  DeviceValues values;  // that are kept
  Workers workers;
  MappedFiles files;
  // Programs that have not run yet. Until they have, libraries may still move memory of their own,
  // which a captured step would go on using.
  size_t yet_to_run;
};

// The runs of one program. The first is queued step by step; later ones are captured once and
// replayed, where that can be (may_be_captured). Whatever differs from run to run lies in the
// memory before the run begins: feeds, and what programs have left for each other.
class DeviceRun {
 public:
  // `kept`: inputs that are.
  DeviceRun(const Program& program, const std::set<std::string>& kept, Shared& shared)
      : program_(program),
        graph_(program.graph()),
        shared_(shared),
        options_(shared.options),
        device_(shared.device),
        exchange_(shared.exchange),
        memory_(shared.memory),
        kept_(kept),
        fed_(shared.device, shared.memory),
        steps_(plan_streams(program, exchange_ != nullptr)) {
    place_sources();
    make_events();
  }

  const std::set<std::string>& kept() const { return kept_; }

  // Once the memory is there: what is the same in every run.
  void upload_constants() {
    for (const auto& [source, offset] : offsets_) {
      const int64_t bytes = graph_.type(source).num_bytes();
      if (bytes == 0 || graph_.value(source).kind == ir::ValueKind::kInput) continue;
      device_.upload(StreamId::kCompute, memory_.at(offset), host_address(source), bytes);
    }
  }

  RankResult run(const Arrays& feeds, const KeptOutputs& keeps) {
    set_inputs(feeds);
    const DeviceCollectives collectives(exchange_, device_);
    on_host_.clear();
    result_ = {};
    result_.rank = shared_.communicator.rank();
    result_.planned = program_.memory();
    std::vector<double> seconds;
    for (int k = 0; k < options_.repeat; ++k) seconds.push_back(run_step());
    std::ranges::nth_element(seconds, seconds.begin() + (options_.repeat - 1) / 2);
    result_.seconds = seconds[static_cast<size_t>(options_.repeat - 1) / 2];
    result_.arena_touched = program_.memory().arena;
    result_.measured_peak = result_.arena_touched + shared_.communicator.staging_bytes();
    tell_notices();
    collect_outputs(keeps);
    keep_outputs(keeps);
    return std::move(result_);
  }

 private:
  const void* host_address(ValueId source) {
    const ir::Value& value = graph_.value(source);
    if (value.kind == ir::ValueKind::kInput) {
      return values_of(value.name).on_host(value.name).bytes().data();
    }
    if (value.kind == ir::ValueKind::kConstant) return value.constant.bytes().data();
    return shared_.files.data(value);
  }

  DeviceValues& values_of(const std::string& input) {
    return kept_.contains(input) ? shared_.values : fed_;
  }

  void set_inputs(const Arrays& feeds) {
    for (ValueId input : graph_.inputs()) {
      const std::string& name = graph_.name_of(input);
      if (!kept_.contains(name)) {
        fed_.set(name, feeds.at(name));
      } else {
        AUTOSP_CHECK(shared_.values.exists(name), "nothing is kept as '{}'", name);
      }
    }
    device_.synchronize();
  }

  // What kernels of the device read.
  void place_sources() {
    for (ValueId input : graph_.inputs()) {
      const std::string& name = graph_.name_of(input);
      values_of(name).declare(name, graph_.type(input));
    }
    for (size_t k = 0; k < steps_.size(); ++k) {
      if (!steps_[k].runs || steps_[k].on_host) continue;
      for (ValueId id : graph_.nodes()[k].inputs) {
        if (!id || program_.place(id).storage == Storage::kArena) continue;
        const ValueId source = program_.place(id).root;
        if (offsets_.contains(source)) continue;
        const std::string& name = graph_.name_of(source);
        offsets_[source] = program_.place(id).storage == Storage::kInput
                               ? values_of(name).place(name)
                               : memory_.add(graph_.type(source).num_bytes());
      }
    }
  }

  void make_events() {
    done_.resize(steps_.size());
    for (size_t k = 0; k < steps_.size(); ++k) {
      if (steps_[k].awaited) done_[k] = device_.make_event();
      if (steps_[k].exchanges) last_exchange_ = device_.make_event();
    }
    if (options_.events != nullptr) origin_ = device_.make_event();
  }

  // Seconds.
  double run_step() {
    result_.collectives.clear();
    if (captured_ == nullptr) timed_.clear();  // what is replayed is what was captured
    if (options_.events != nullptr) options_.events->clear();
    const auto begin = Clock::now();
    step_begin_ = begin;
    if (origin_) device_.record(StreamId::kCompute, *origin_);
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
    tell_times();
    return seconds;
  }

  void capture_step() {
    has_tried_to_capture_ = true;
    if (!all_ranks(may_be_captured())) return;
    captured_ = device_.capture([&] { queue_step(); });
    if (!all_ranks(captured_ != nullptr) && captured_ != nullptr) {
      captured_ = nullptr;
      result_.notices.emplace_back(
          "repeated steps are queued anew, not as one graph: another rank could not capture them");
    }
    if (captured_ == nullptr) timed_.clear();  // it is queued once more
  }

  // Whether it is so on all ranks between which NCCL exchanges: a collective is captured by all of
  // its ranks or by none ("Using NCCL with CUDA Graphs" in NCCL's user guide).
  bool all_ranks(bool own) {
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

  void check_faults() {
    int32_t fault = 0;
    device_.download(StreamId::kCompute, &fault,
                     reinterpret_cast<const std::byte*>(device_.faults()), sizeof(fault));
    if (fault == 0) return;
    const ir::Node& node = graph_.nodes()[static_cast<size_t>(fault) - 1];
    throw in_step(Error("an index is outside the axis that it is for"), graph_, node, result_.rank);
  }

  // Nothing on the host, and nothing that another rank's thread queues.
  bool may_be_captured() const {
    if (options_.events != nullptr) return false;
    for (size_t k = 0; k < steps_.size(); ++k) {
      if (steps_[k].on_host || (steps_[k].exchanges && meets_threads(k))) return false;
    }
    return true;
  }

  // A group of one meets nobody.
  bool meets_threads(size_t k) const {
    return exchange_ == &shared_.communicator &&
           graph_.nodes()[k].attributes.get_ints("group").size() > 1;
  }

  void queue_step() {
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

  void run_node(size_t k, StreamId stream) {
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

  void run_there(size_t k, StreamId stream) {
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
    Timed timed{.step = k};
    const bool traced = options_.events != nullptr;
    if (traced) {
      timed.begin = device_.make_event();
      timed.end = device_.make_event();
      device_.record(stream, *timed.begin);
    }
    program_.kernel(k)(call);
    if (traced) device_.record(stream, *timed.end);
    if (traced || ir::is_collective(node)) timed_.push_back(std::move(timed));
  }

  // Once the compute stream has come this far: operands to the host, results back.
  void run_on_host(size_t k) {
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
    record_on_host(node, begin);
  }

  const void* on_host(ValueId id, std::vector<ir::Tensor>& staged) {
    const Place& place = program_.place(id);
    if (place.storage != Storage::kArena) return host_address(place.root);
    staged.emplace_back(graph_.type(id));
    const int64_t bytes = graph_.type(id).num_bytes();
    if (bytes > 0) {
      device_.download(StreamId::kCompute, staged.back().mutable_bytes(), device_address(id),
                       bytes);
    }
    return staged.back().bytes().data();
  }

  std::byte* arena_address(int buffer) const {
    return memory_.at(program_.buffers()[static_cast<size_t>(buffer)].offset);
  }

  std::byte* device_address(ValueId id) const {
    const Place& place = program_.place(id);
    return place.storage == Storage::kArena ? arena_address(place.buffer)
                                            : memory_.at(offsets_.at(place.root));
  }

  void record_on_host(const ir::Node& node, Clock::time_point begin) {
    const double duration = seconds_since(begin);
    const bool collective = ir::is_collective(node);
    const int64_t bytes = collective ? bytes_sent(graph_, node, result_.rank) : 0;
    if (collective) result_.collectives.push_back({node.name, node.op, bytes, duration});
    if (options_.events == nullptr) return;
    const double start = std::chrono::duration<double>(begin - options_.epoch).count();
    options_.events->push_back(
        {node.name, node.op + " (host)", result_.rank, start, duration, bytes});
  }

  // Of what ran on the device. The step's origin is the host's clock when it began.
  void tell_times() {
    const double origin = std::chrono::duration<double>(step_begin_ - options_.epoch).count();
    for (const Timed& timed : timed_) {
      const ir::Node& node = graph_.nodes()[timed.step];
      const bool collective = ir::is_collective(node);
      const int64_t bytes = collective ? bytes_sent(graph_, node, result_.rank) : 0;
      double duration = 0;
      if (timed.begin) {
        duration = device_.seconds_between(*timed.begin, *timed.end);
        const double start = origin + device_.seconds_between(*origin_, *timed.begin);
        options_.events->push_back({node.name, node.op, result_.rank, start, duration, bytes});
      }
      if (collective) result_.collectives.push_back({node.name, node.op, bytes, duration});
    }
    if (options_.events != nullptr) std::ranges::sort(*options_.events, {}, &TraceEvent::start);
  }

  void tell_notices() {
    if (!on_host_.empty()) {
      result_.notices.push_back(fmt::format("without a kernel for the device, run on the host: {}",
                                            fmt::join(on_host_, ", ")));
    }
    if (exchange_ == nullptr && shared_.communicator.size() > 1 &&
        !options_.device->notice().empty()) {
      result_.notices.push_back(
          fmt::format("collectives go through host memory: {}", options_.device->notice()));
    }
    std::ranges::copy(device_.notices(), std::back_inserter(result_.notices));
  }

  // Those that are not kept.
  void collect_outputs(const KeptOutputs& keeps) {
    std::map<int, ir::Tensor> copied;  // by buffer: several outputs may be one
    for (const ir::Output& output : graph_.outputs()) {
      if (keeps.contains(output.name)) continue;
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

  // First those that are inputs, or the like, themselves: others may take these inputs' names.
  void keep_outputs(const KeptOutputs& keeps) {
    Arrays sources;
    for (const ir::Output& output : graph_.outputs()) {
      const auto name = keeps.find(output.name);
      if (name == keeps.end() || program_.place(output.value).storage == Storage::kArena) continue;
      sources[name->second] = source_on_host(output.value);
    }
    for (const ir::Output& output : graph_.outputs()) {
      const auto name = keeps.find(output.name);
      if (name == keeps.end() || program_.place(output.value).storage != Storage::kArena) continue;
      shared_.values.take(name->second, device_address(output.value));
    }
    for (const auto& [name, tensor] : sources) shared_.values.set(name, tensor);
    if (!keeps.empty()) device_.synchronize();
  }

  // Of an output that is an input, a constant or external data.
  ir::Tensor source_on_host(ValueId id) {
    const Place& place = program_.place(id);
    const ir::Type& type = graph_.type(id);
    if (place.storage == Storage::kInput) {
      const std::string& name = graph_.name_of(place.root);
      return values_of(name).on_host(name).reshaped(type.shape);
    }
    const auto* bytes = static_cast<const std::byte*>(host_address(place.root));
    return {type, {bytes, static_cast<size_t>(type.num_bytes())}};
  }

  ir::Tensor downloaded(ValueId id) {
    ir::Tensor tensor(graph_.type(id));
    const int64_t bytes = graph_.type(id).num_bytes();
    if (bytes > 0) {
      device_.download(StreamId::kCompute, tensor.mutable_bytes(), device_address(id), bytes);
    }
    return tensor;
  }

  struct Timed {
    size_t step = 0;
    std::unique_ptr<DeviceEvent> begin;  // null: not measured
    std::unique_ptr<DeviceEvent> end;
  };

  const Program& program_;
  const ir::Graph& graph_;
  Shared& shared_;
  const ExecuteOptions& options_;
  Device& device_;
  Communicator* exchange_;  // of device memory, or null
  DeviceMemory& memory_;
  const std::set<std::string> kept_;  // inputs
  DeviceValues fed_;                  // the others, of the last run
  std::vector<StreamStep> steps_;
  std::map<ValueId, int64_t> offsets_;              // in the memory, of what came from the host
  std::vector<std::unique_ptr<DeviceEvent>> done_;  // by step, where awaited
  std::unique_ptr<DeviceEvent> last_exchange_;
  std::unique_ptr<DeviceEvent> origin_;  // of the step's time line
  Clock::time_point step_begin_;
  bool has_run_ = false;
  bool has_tried_to_capture_ = false;
  std::unique_ptr<CapturedStep> captured_;
  std::vector<Timed> timed_;
  std::set<std::string> on_host_;             // operators
  std::vector<reference::Operand> operands_;  // of the step that runs
  std::vector<reference::Result> results_;
  RankResult result_;
};

class DeviceSession final : public Session {
 public:
  DeviceSession(const std::vector<SessionProgram>& programs, Communicator& communicator,
                const ExecuteOptions& options)
      : shared_{.communicator = communicator,
                .options = options,
                .device = options.device->device(),
                .exchange = options.device->exchange(),
                .memory = DeviceMemory(options.device->device(), largest_arena(programs)),
                .values = DeviceValues(shared_.device, shared_.memory),
                .workers = Workers(programs.front().program->workers()),
                .files = MappedFiles(options.data_folder),
                .yet_to_run = programs.size()} {
    for (const auto& [program, kept] : programs) {
      runs_.try_emplace(program, *program, kept, shared_);
    }
  }

  void keep(const std::string& name, const ir::Tensor& value) override {
    begin();
    shared_.values.set(name, value);
  }
  void keep_zeros(const std::string& name, const ir::Type& /*its input has it*/) override {
    begin();
    shared_.values.set_zeros(name);
  }
  ir::Tensor kept(const std::string& name) override { return shared_.values.on_host(name); }
  int64_t kept_bytes(const std::string& name) const override { return shared_.values.bytes(name); }
  void drop(const std::string& name) override { shared_.values.drop(name); }

  RankResult run(const Program& program, const Arrays& feeds, const KeptOutputs& keeps) override {
    DeviceRun& one = runs_.at(&program);
    check_feeds(program.graph(), feeds, one.kept());
    begin();
    return one.run(feeds, keeps);
  }

 private:
  // Memory is taken when something comes that is to lie there.
  void begin() {
    if (has_begun_) return;
    has_begun_ = true;
    shared_.memory.allocate();
    for (auto& [program, run] : runs_) run.upload_constants();
  }

  Shared shared_;
  std::map<const Program*, DeviceRun> runs_;
  bool has_begun_ = false;
};

}  // namespace

std::unique_ptr<Session> make_device_session(const std::vector<SessionProgram>& programs,
                                             Communicator& communicator,
                                             const ExecuteOptions& options) {
  return std::make_unique<DeviceSession>(programs, communicator, options);
}

}  // namespace autosp::executor
