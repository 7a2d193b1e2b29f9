#include "executor/run_on_device.h"

#include "executor/arena_session.h"
#include "executor/device_run.h"
#include "executor/rank_device.h"
#include "executor/step_records.h"

namespace autosp::executor {

namespace {

class DeviceSession final : public ArenaSession {
 public:
  DeviceSession(const std::vector<const Program*>& programs, Communicator& communicator,
                const ExecuteOptions& options)
      : ArenaSession(programs),
        parts_{.communicator = communicator,
               .options = options,
               .device = options.device->device(),
               .exchange = options.device->exchange(),
               .memory = DeviceMemory(options.device->device(), programs.front()->memory().arena),
               .workers = Workers(programs.front()->workers()),
               .files = MappedFiles(options.data_folder),
               .yet_to_run = programs.size()} {
    for (const Program* program : programs) runs_.try_emplace(program, *program, parts_);
  }

 private:
  RankResult run_program(const Program& program, const Arrays& feeds,
                         const Wanted& wanted) override {
    begin();
    return runs_.at(&program).run(feeds, wanted);
  }
  void write(int64_t offset, std::span<const std::byte> bytes) override {
    begin();
    parts_.device.upload(StreamId::kCompute, parts_.memory.at(offset), bytes.data(),
                         std::ssize(bytes));
  }
  void clear(int64_t offset, int64_t bytes) override {
    begin();
    parts_.device.clear(StreamId::kCompute, parts_.memory.at(offset), bytes);
  }
  void read(int64_t offset, std::span<std::byte> to) override {
    begin();
    parts_.device.download(StreamId::kCompute, to.data(), parts_.memory.at(offset), std::ssize(to));
  }
  void copy(int64_t from, int64_t to, int64_t bytes) override {
    const Box all{{0}, {bytes}};
    parts_.device.copy_box(StreamId::kCompute, 1, {parts_.memory.at(from), {bytes}}, all,
                           {parts_.memory.at(to), {bytes}}, all);
  }

  // Memory is taken when something comes that is to lie there.
  void begin() {
    if (has_begun_) return;
    parts_.memory.allocate();
    has_begun_ = true;
    for (auto& [program, run] : runs_) run.upload_constants();
  }

  DeviceSessionParts parts_;
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
