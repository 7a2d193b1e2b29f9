// A device that is none: its memory is the host's, and this project's kernels for devices run on it
// in loops. What the executor does with a device can so be tested without one.
//
// It is as strict as a device and less forgiving. Its memory can be touched by queued work alone:
// the host faults. Work runs as late as streams and events allow, or, on the exchange stream, as
// early: what a missing wait leaves to chance on a device goes wrong here. Threads of a kernel may
// run in either order, so that one that reads what another writes meanwhile is wrong in one of
// them. Memory is full of garbage until it is written.
#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "executor/device.h"
#include "executor/kernel_table.h"

namespace autosp::test {

class EmulatedChains;

struct EmulatedOptions {
  bool early_exchange = false;        // otherwise as late as possible
  std::set<std::string> missing;      // operators that it has no kernels for
  int64_t memory = int64_t{1} << 40;  // bytes of each device
  bool captures = true;
  bool backwards = false;          // the last thread of a kernel, and of a block, runs first
  bool compiles = true;            // fused chains
  bool refuses_epilogues = false;  // products are finished by a kernel of their own
  bool joint_statistics = false;   // attention that may keeps one number per row, as cuDNN does
  bool joins = false;  // there is something like NCCL between processes, which carries nothing
};

struct EmulatedCounts {
  std::atomic<int64_t> launches = 0;  // of kernels
  std::atomic<int64_t> uploads = 0;
  std::atomic<int64_t> downloads = 0;
  std::atomic<int64_t> allocations = 0;
  std::atomic<int64_t> live_bytes = 0;
  std::atomic<int64_t> replays = 0;
  std::atomic<int64_t> kept = 0;  // steps, at the moment
};

class EmulatedBackend final : public executor::Backend {
 public:
  explicit EmulatedBackend(EmulatedOptions options = {});
  ~EmulatedBackend() override;

  std::string_view name() const override { return "emulated"; }
  std::span<const executor::KernelRow> rows() const override { return rows_; }
  std::unique_ptr<executor::Device> open(int rank) override;
  std::unique_ptr<executor::Communicator> connect(executor::Device& device,
                                                  executor::Communicator& host,
                                                  std::string& notice) override;

  const EmulatedCounts& counts() const { return counts_; }
  // What the collectives of this rank ask of its device fails.
  void fail_boxes_of(int rank) { failing_rank_ = rank; }

 private:
  static std::function<void(const executor::KernelCall&)> make_chain(
      const executor::Backend& backend, const ir::Graph& graph, const ir::Node& chain);

  EmulatedOptions options_;
  std::vector<executor::KernelRow> rows_;
  std::unique_ptr<EmulatedChains> chains_;
  EmulatedCounts counts_;
  int failing_rank_ = -1;
};

}  // namespace autosp::test
