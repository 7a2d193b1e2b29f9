#include "onnxruntime/member.h"

#include <dlfcn.h>
#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "executor/transport/mpi.h"
#include "executor/transport/threads.h"

namespace autosp::onnxruntime {

namespace {

// --- Threads.

struct World {
  World(int size, double timeout) : ranks(size), meeting(size, timeout) {}
  int ranks;
  executor::ThreadWorld meeting;
};

struct Worlds {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<World>> by_name;
};

Worlds& worlds() {
  static Worlds all;
  return all;
}

std::shared_ptr<World> find_world(const Settings& settings) {
  Worlds& all = worlds();
  const std::lock_guard lock(all.mutex);
  std::erase_if(all.by_name, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<World>& known = all.by_name[settings.world];
  std::shared_ptr<World> world = known.lock();
  if (!world) known = world = std::make_shared<World>(settings.ranks, settings.timeout);
  if (world->ranks != settings.ranks) {
    throw Error("world '{}' has {} ranks, but rank {} says {}", settings.world, world->ranks,
                settings.rank, settings.ranks)
        .note("the first session of a world says how many there are (autosp.ranks)")
        .help("give all sessions of one world the same number of ranks");
  }
  return world;
}

class ThreadMember final : public Member {
 public:
  explicit ThreadMember(const Settings& settings)
      : world_(find_world(settings)), rank_(settings.rank) {}
  executor::Communicator& communicator() override { return world_->meeting.rank(rank_); }
  void fail(std::exception_ptr error) override { world_->meeting.fail(rank_, std::move(error)); }

 private:
  std::shared_ptr<World> world_;
  int rank_;
};

// --- MPI.

// The runtime opens this library for itself alone, and MPI with it; but the parts that MPI loads
// look for MPI's functions among those that are open to all.
void open_mpi_to_all() {
  Dl_info mpi{};
  if (dladdr(reinterpret_cast<void*>(&MPI_Init_thread), &mpi) == 0) return;
  dlopen(mpi.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

// Whether all ranks have come to their end in time.
bool all_leave(double timeout) {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout);
  for (;;) {
    int done = 0;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done != 0) return true;
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

class MpiMember final : public Member {
 public:
  explicit MpiMember(double timeout) : timeout_(timeout) {
    int initialized = 0;
    MPI_Initialized(&initialized);
    if (initialized == 0) {
      open_mpi_to_all();
      int provided = 0;
      MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
      owns_mpi_ = true;
    }
    communicator_ = executor::make_mpi_communicator(timeout);
  }

  executor::Communicator& communicator() override { return *communicator_; }
  void fail(std::exception_ptr /*error*/) override { failed_ = true; }

  // When the process ends. MPI_Finalize waits for all ranks, so it is not called after a failure.
  void leave() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized != 0 || !owns_mpi_ || failed_ || !all_leave(timeout_)) {
      communicator_.release();  // NOLINT: freeing it is collective, too
      return;
    }
    communicator_.reset();
    MPI_Finalize();
  }

 private:
  double timeout_;
  bool owns_mpi_ = false;
  bool failed_ = false;
  std::unique_ptr<executor::Communicator> communicator_;
};

// The process's one rank: MPI itself is global.
std::shared_ptr<Member> mpi_member(double timeout) {
  static std::mutex mutex;
  static std::shared_ptr<MpiMember> member;
  const std::lock_guard lock(mutex);
  if (!member) {
    member = std::make_shared<MpiMember>(timeout);
    std::atexit([] { member->leave(); });
  }
  return member;
}

}  // namespace

std::shared_ptr<Member> join(const Settings& settings) {
  if (settings.threads) return std::make_shared<ThreadMember>(settings);
  return mpi_member(settings.timeout);
}

void fail_rank(const std::string& world, int rank, const std::string& reason) {
  std::shared_ptr<World> found;
  {
    Worlds& all = worlds();
    const std::lock_guard lock(all.mutex);
    const auto entry = all.by_name.find(world);
    if (entry != all.by_name.end()) found = entry->second.lock();
  }
  if (!found || rank < 0 || rank >= found->ranks) return;
  found->meeting.fail(rank, std::make_exception_ptr(Error("{}", reason)));
}

}  // namespace autosp::onnxruntime
