#include "executor/run_on_device.h"

#include "executor/device_run.h"
#include "executor/rank_device.h"
#include "executor/session_values.h"
#include "executor/step_records.h"

namespace autosp::executor {

namespace {

class DeviceSession final : public Session {
 public:
  DeviceSession(const std::vector<const Program*>& programs, Communicator& communicator,
                const ExecuteOptions& options)
      : parts_{.communicator = communicator,
               .options = options,
               .device = options.device->device(),
               .exchange = options.device->exchange(),
               .memory = DeviceMemory(options.device->device(), programs.front()->memory().arena),
               .workers = Workers(programs.front()->workers()),
               .files = MappedFiles(options.data_folder),
               .yet_to_run = programs.size()},
        values_(programs) {
    for (const Program* program : programs) runs_.try_emplace(program, *program, parts_);
  }

  void keep(const std::string& name, const ir::Tensor& value) override {
    begin();
    values_.set(name, value.type());
    put(name, value);
  }
  void keep_zeros(const std::string& name) override {
    begin();
    const auto& [type, offset] = values_.at(name);
    values_.set(name, type);
    if (type.num_bytes() == 0) return;
    parts_.device.clear(StreamId::kCompute, parts_.memory.at(offset), type.num_bytes());
  }
  ir::Tensor kept(const std::string& name) override {
    const auto& [type, offset] = values_.existing(name);
    ir::Tensor tensor(type);
    if (type.num_bytes() == 0) return tensor;
    parts_.device.download(StreamId::kCompute, tensor.mutable_bytes(), parts_.memory.at(offset),
                           type.num_bytes());
    return tensor;
  }
  int64_t kept_bytes(const std::string& name) const override {
    return values_.exists(name) ? values_.at(name).type.num_bytes() : 0;
  }

  RankResult run(const Program& program, const Arrays& feeds) override {
    check_feeds(program.graph(), feeds, values_.inputs_of(program));
    values_.forget_before(program);
    begin();
    RankResult result = runs_.at(&program).run(
        feeds, [&](const ir::Output& output) { return values_.gives_out(program, output); });
    for (const SessionValues::Copy& copy : values_.copies(program)) move(copy);
    for (const auto& [output, name] : program.kept_outputs()) {
      const auto given = result.outputs.extract(output);
      if (!given.empty()) put(name, given.mapped());
    }
    values_.set_after(program);
    return result;
  }

 private:
  // Memory is taken when something comes that is to lie there.
  void begin() {
    if (has_begun_) return;
    has_begun_ = true;
    parts_.memory.allocate();
    for (auto& [program, run] : runs_) run.upload_constants();
  }

  void move(const SessionValues::Copy& copy) {
    if (copy.bytes == 0) return;
    const Box all{{0}, {copy.bytes}};
    parts_.device.copy_box(StreamId::kCompute, 1, {parts_.memory.at(copy.from), {copy.bytes}}, all,
                           {parts_.memory.at(copy.to), {copy.bytes}}, all);
  }

  void put(const std::string& name, const ir::Tensor& value) {
    const int64_t bytes = value.type().num_bytes();
    if (bytes == 0) return;
    parts_.device.upload(StreamId::kCompute, parts_.memory.at(values_.at(name).offset),
                         value.bytes().data(), bytes);
  }

  DeviceSessionParts parts_;
  SessionValues values_;
  std::map<const Program*, DeviceRun> runs_;
  bool has_begun_ = false;
};

}  // namespace

std::unique_ptr<Session> make_device_session(const std::vector<const Program*>& programs,
                                             Communicator& communicator,
                                             const ExecuteOptions& options) {
  return std::make_unique<DeviceSession>(programs, communicator, options);
}

}  // namespace autosp::executor
