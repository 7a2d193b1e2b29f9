#include "executor/transport/threads.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "executor/device.h"
#include "executor/transport/boxes.h"
#include "executor/transport/checked.h"

namespace autosp::executor {

namespace {

constexpr std::chrono::microseconds kSpin{50};

// What a member brings to a meeting; the others read it until the meeting is over.
struct Post {
  const Collective* collective = nullptr;
  const ConstBuffer* x = nullptr;
  std::byte* y = nullptr;
  const std::vector<Box>* send = nullptr;     // of an exchange
  const std::vector<Box>* receive = nullptr;  // of an exchange
  // Of device memory: when its operand is there, and when it is done with the others'.
  DeviceEvent* ready = nullptr;
  DeviceEvent* done = nullptr;
};

// One group's meeting place, used by one collective after the other.
struct Meeting {
  std::condition_variable changed;
  std::vector<Post> posts;  // by member
  std::vector<bool> here;
  size_t arrived = 0;
  // Of devices: members that use each other's memory and events, and whether one of them fails.
  size_t inside = 0;
  bool fails = false;
  std::atomic<uint64_t> round = 0;  // changed with the mutex held, read without it by spin()
};

std::optional<Error> find_mismatch(const std::vector<Post>& posts) {
  const Collective& first = *posts[0].collective;
  for (const Post& post : posts) {
    const Collective& other = *post.collective;
    if (other.op != first.op || other.node != first.node || other.dtype != first.dtype) {
      const size_t member = static_cast<size_t>(&post - posts.data());
      return Error("ranks call different collectives: rank {} calls {}, but rank {} calls {}",
                   first.group[0], describe(first), first.group[member], describe(other))
          .note("every rank must come to the same collectives in the same order, with equal shapes")
          .help("the rank graphs do not belong together: shard the model again");
    }
    if (post.send == nullptr && post.x->shape != posts[0].x->shape) {
      const size_t member = static_cast<size_t>(&post - posts.data());
      return Error("{}: rank {} brings {}, but rank {} brings {}", describe(first), first.group[0],
                   ir::to_string(posts[0].x->shape), first.group[member],
                   ir::to_string(post.x->shape))
          .note("every rank must come to the same collectives in the same order, with equal shapes")
          .help("the rank graphs do not belong together: shard the model again");
    }
  }
  if (posts[0].send == nullptr) return std::nullopt;
  for (size_t from = 0; from < posts.size(); ++from) {
    for (size_t to = 0; to < posts.size(); ++to) {
      const int64_t sent = (*posts[from].send)[to].num_elements();
      const int64_t expected = (*posts[to].receive)[from].num_elements();
      if (sent == expected) continue;
      return Error("{}: rank {} sends {} elements to rank {}, which expects {}", describe(first),
                   first.group[from], sent, first.group[to], expected)
          .note("every rank must come to the same collectives in the same order, with equal shapes")
          .help("the rank graphs do not belong together: shard the model again");
    }
  }
  return std::nullopt;
}

}  // namespace

struct ThreadWorld::State {
  enum class Doing : uint8_t { kComputing, kWaiting, kFinished };
  struct Status {
    Doing doing = Doing::kComputing;
    std::string collective;  // the one it waits in, or else the last it went through
  };

  State(int size, double timeout_seconds)
      : timeout(timeout_seconds), status(static_cast<size_t>(size)) {}

  Meeting& meeting(const std::vector<int>& group) {
    std::unique_ptr<Meeting>& found = meetings[group];
    if (!found) {
      found = std::make_unique<Meeting>();
      found->posts.resize(group.size());
      found->here.assign(group.size(), false);
    }
    return *found;
  }

  // With the mutex held.
  void end_all(std::exception_ptr error) {
    if (!failure) failure = std::move(error);
    for (const auto& [group, meeting] : meetings) meeting->changed.notify_all();
  }

  bool nobody_computes() const {
    return std::ranges::none_of(status,
                                [](const Status& s) { return s.doing == Doing::kComputing; });
  }

  Error stuck(const std::string& reason, int rank, const Collective& collective,
              const Meeting& meeting) const {
    std::vector<int> missing;
    for (size_t i = 0; i < collective.group.size(); ++i) {
      if (!meeting.here[i]) missing.push_back(collective.group[i]);
    }
    Error error("rank {} {} in {} for rank{} {}", rank, reason, describe(collective),
                missing.size() == 1 ? "" : "s", fmt::join(missing, ", "));
    for (int other : missing) {
      const Status& s = status[static_cast<size_t>(other)];
      error.note(fmt::format("rank {} {}", other,
                             s.doing == Doing::kFinished  ? "has finished"
                             : s.doing == Doing::kWaiting ? "waits in " + s.collective
                             : s.collective.empty() ? "computes and has been in no collective yet"
                                                    : "computes; it was last in " + s.collective));
    }
    return error.help(
        "the ranks' graphs do not belong together, or a rank is slow: then allow it more time");
  }

  std::chrono::duration<double> timeout;
  mutable std::mutex mutex;  // guards everything below
  std::map<std::vector<int>, std::unique_ptr<Meeting>> meetings;
  std::vector<Status> status;
  std::exception_ptr failure;
  std::vector<std::unique_ptr<Rank>> ranks;
};

class ThreadWorld::Rank final : public CheckedCommunicator {
 public:
  Rank(State& world, int rank) : world_(world), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_.status.size()); }
  void give_up(const std::exception_ptr& reason) override {
    const std::lock_guard lock(world_.mutex);
    world_.end_all(reason);
  }

  bool use(Device* device) override {
    device_ = device;
    ready_ = device == nullptr ? nullptr : device->make_event();
    done_ = device == nullptr ? nullptr : device->make_event();
    return true;
  }

 private:
  void exchange(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                const std::vector<Box>& send, const std::vector<Box>& receive) override {
    const size_t me = member(collective);
    const size_t members = collective.group.size();
    const Post post{&collective, &x, static_cast<std::byte*>(y.data), &send, &receive};
    meet_over(collective, post, [&](Meeting& meeting) {
      for (size_t step = 0; step < members; ++step) {
        const size_t from = (me + step) % members;  // not all from the same one at once
        const Post& other = meeting.posts[from];
        move(collective, *other.x, (*other.send)[me], y, receive[from]);
      }
      leave(meeting, members);
    });
  }

  void reduce_boxes(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                    const std::vector<Box>& parts) override {
    const Post post{&collective, &x, static_cast<std::byte*>(y.data)};
    meet_over(collective, post, [&](Meeting& meeting) {
      sum(collective, operands(meeting), x.shape, parts[member(collective)], post.y);
      leave(meeting, collective.group.size());
    });
  }

  // Each member sums one part for all; then everybody copies the others' parts.
  void reduce_all(const Collective& collective, const std::byte* x, std::byte* y,
                  int64_t count) override {
    const size_t me = member(collective);
    const size_t members = collective.group.size();
    const auto size = static_cast<int64_t>(ir::element_size(collective.dtype));
    const std::vector<int64_t> cuts = even_cuts(count, members);
    const ConstBuffer flat{x, {count}};
    meet_over(collective, {&collective, &flat, y}, [&](Meeting& meeting) {
      std::vector<const std::byte*> terms = operands(meeting);
      for (const std::byte*& term : terms) term += cuts[me] * size;
      const ir::Shape own{cuts[me + 1] - cuts[me]};
      sum(collective, terms, own, whole_box(own), y + cuts[me] * size);
      leave(meeting, members);
      for (size_t step = 1; step < members; ++step) {
        const size_t from = (me + step) % members;
        const int64_t begin = cuts[from] * size;
        const ir::Shape part{cuts[from + 1] - cuts[from]};
        move(collective, {meeting.posts[from].y + begin, part}, whole_box(part), {y + begin, part},
             whole_box(part));
      }
      leave(meeting, members);
    });
  }

  void move(const Collective& collective, const ConstBuffer& x, const Box& from, const Buffer& y,
            const Box& to) {
    const size_t size = ir::element_size(collective.dtype);
    if (device_ != nullptr) {
      device_->copy_box(StreamId::kExchange, size, x, from, y, to);
    } else {
      copy_box(size, x, from, y, to);
    }
  }

  void sum(const Collective& collective, std::span<const std::byte* const> terms,
           const ir::Shape& shape, const Box& box, std::byte* out) {
    if (device_ != nullptr) {
      device_->sum_boxes(StreamId::kExchange, collective.dtype, terms, shape, box, out);
    } else {
      sum_boxes(collective.dtype, terms, shape, box, out);
    }
  }

  static std::vector<const std::byte*> operands(const Meeting& meeting) {
    std::vector<const std::byte*> result;
    for (const Post& post : meeting.posts) {
      result.push_back(static_cast<const std::byte*>(post.x->data));
    }
    return result;
  }

  // Posts, waits until all members have, and does the work for which each reads what the others
  // have posted. A device waits for the others' operands. Throws when that cannot be.
  template <typename Work>
  void meet_over(const Collective& collective, Post post, const Work& work) {
    const Alone alone(busy_, rank_, collective);
    post.ready = ready_.get();
    post.done = done_.get();
    if (device_ == nullptr) return work(gather(collective, post));
    device_->record(StreamId::kExchange, *ready_);
    Meeting& meeting = gather(collective, post);
    try {
      for (const Post& other : meeting.posts) device_->wait(StreamId::kExchange, *other.ready);
      work(meeting);
    } catch (...) {
      go_last(meeting);
      throw;
    }
    // All have come to the end.
    const std::lock_guard lock(world_.mutex);
    --meeting.inside;
  }

  // One collective of a rank at a time: a second would take the place at the meeting of the first,
  // whose memory the others may be reading.
  class Alone {
   public:
    Alone(std::atomic<bool>& busy, int rank, const Collective& collective) : busy_(busy) {
      if (!busy_.exchange(true)) return;
      throw Error("rank {} comes to {}, but it is already in a collective", rank,
                  describe(collective))
          .note("two runs act as this rank at the same time")
          .help("let a world have one session for each rank, and one run of it at a time");
    }
    ~Alone() { busy_ = false; }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;

   private:
    std::atomic<bool>& busy_;
  };

  // Of a member whose device fails: the others come no further either, and queue nothing more with
  // its memory and events. Until then it keeps these, and does not return.
  void go_last(Meeting& meeting) {
    std::unique_lock lock(world_.mutex);
    --meeting.inside;
    meeting.fails = true;
    meeting.changed.notify_all();
    meeting.changed.wait(lock, [&] { return meeting.inside == 0; });
  }

  // Waits until all members have come this far; a device will wait until theirs are done. An event
  // may have been recorded again by then: it then stands for more, never for less.
  void leave(Meeting& meeting, size_t members) {
    if (device_ == nullptr) return meet(meeting, members);
    device_->record(StreamId::kExchange, *done_);
    meet(meeting, members);
    for (const Post& other : meeting.posts) device_->wait(StreamId::kExchange, *other.done);
    meet(meeting, members);
  }

  Meeting& gather(const Collective& collective, const Post& post) {
    std::unique_lock lock(world_.mutex);
    if (world_.failure) throw Interrupted();
    Meeting& meeting = world_.meeting(collective.group);
    const size_t me = member(collective);
    meeting.posts[me] = post;
    meeting.here[me] = true;
    State::Status& status = world_.status[static_cast<size_t>(rank_)];
    status.collective = describe(collective);
    if (++meeting.arrived == collective.group.size()) {
      if (auto error = find_mismatch(meeting.posts)) end(*error);
      for (int other : collective.group) {
        world_.status[static_cast<size_t>(other)].doing = State::Doing::kComputing;
      }
      meeting.inside = collective.group.size();
      open(meeting);
      return meeting;
    }
    status.doing = State::Doing::kWaiting;
    if (world_.nobody_computes()) {
      end(world_.stuck("waits in vain", rank_, collective, meeting));
    }
    const uint64_t round = meeting.round;
    spin(lock, meeting, round);
    const bool in_time = meeting.changed.wait_for(
        lock, world_.timeout, [&] { return meeting.round != round || world_.failure; });
    if (meeting.round != round) return meeting;
    if (!in_time) {
      end(world_.stuck(fmt::format("has waited {:.4g} s", world_.timeout.count()), rank_,
                       collective, meeting));
    }
    throw Interrupted();
  }

  // Waits until all members have come this far. They all will, unless the device of one fails.
  void meet(Meeting& meeting, size_t members) {
    std::unique_lock lock(world_.mutex);
    if (++meeting.arrived == members) return open(meeting);
    const uint64_t round = meeting.round;
    spin(lock, meeting, round);
    meeting.changed.wait(lock, [&] { return meeting.round != round || meeting.fails; });
    if (meeting.round == round) throw Interrupted();
  }

  // Waits for the next round without going to sleep, for as long as waking up would take. Where
  // ranks share cores, the core is better left to the one that is waited for.
  void spin(std::unique_lock<std::mutex>& lock, const Meeting& meeting, uint64_t round) const {
    if (world_.status.size() > std::thread::hardware_concurrency()) return;
    lock.unlock();
    const auto end = std::chrono::steady_clock::now() + kSpin;
    while (meeting.round == round && std::chrono::steady_clock::now() < end) {
    }
    lock.lock();
  }

  static void open(Meeting& meeting) {
    meeting.arrived = 0;
    meeting.here.assign(meeting.here.size(), false);
    ++meeting.round;
    meeting.changed.notify_all();
  }

  // With the mutex held.
  [[noreturn]] void end(const Error& error) {
    world_.end_all(std::make_exception_ptr(error));
    throw error;
  }

  State& world_;
  int rank_;
  std::atomic<bool> busy_ = false;  // in a collective
  Device* device_ = nullptr;        // whose memory collectives work on; null: the host's
  std::unique_ptr<DeviceEvent> ready_;
  std::unique_ptr<DeviceEvent> done_;
};

ThreadWorld::ThreadWorld(int size, double timeout_seconds)
    : state_(std::make_unique<State>(size, timeout_seconds)) {
  for (int rank = 0; rank < size; ++rank) {
    state_->ranks.push_back(std::make_unique<Rank>(*state_, rank));
  }
}

ThreadWorld::~ThreadWorld() = default;

Communicator& ThreadWorld::rank(int rank) { return *state_->ranks[static_cast<size_t>(rank)]; }

void ThreadWorld::finish(int rank) {
  const std::lock_guard lock(state_->mutex);
  state_->status[static_cast<size_t>(rank)].doing = State::Doing::kFinished;
  if (state_->failure || !state_->nobody_computes()) return;
  // Whoever still waits, waits in vain.
  for (const auto& [group, meeting] : state_->meetings) {
    for (size_t i = 0; i < group.size(); ++i) {
      const bool waits =
          state_->status[static_cast<size_t>(group[i])].doing == State::Doing::kWaiting;
      if (!waits || !meeting->here[i]) continue;
      state_->end_all(std::make_exception_ptr(
          state_->stuck("waits in vain", group[i], *meeting->posts[i].collective, *meeting)));
      return;
    }
  }
}

void ThreadWorld::fail(int rank, std::exception_ptr error) {
  const std::lock_guard lock(state_->mutex);
  state_->status[static_cast<size_t>(rank)].doing = State::Doing::kFinished;
  state_->end_all(std::move(error));
}

std::exception_ptr ThreadWorld::failure() const {
  const std::lock_guard lock(state_->mutex);
  return state_->failure;
}

}  // namespace autosp::executor
