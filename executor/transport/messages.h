// MPI messages under way, waited for with a time-out.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace autosp::executor {

// Outstanding messages, each of one peer.
class Messages {
 public:
  explicit Messages(MPI_Comm comm) : comm_(comm) {}
  Messages(const Messages&) = delete;
  Messages& operator=(const Messages&) = delete;

  // After a failure: nothing may arrive any more in memory that is about to go.
  ~Messages() {
    for (size_t k = 0; k < requests_.size(); ++k) {
      if (requests_[k] == MPI_REQUEST_NULL) continue;
      if (outgoing_[k] == 0) MPI_Cancel(&requests_[k]);
      MPI_Request_free(&requests_[k]);
    }
  }

  void send(int peer, int tag, const std::byte* data, int64_t bytes) {
    pieces(bytes, [&](int64_t begin, int count) {
      MPI_Isend(data + begin, count, MPI_BYTE, peer, tag, comm_, add(peer, true));
    });
  }
  void receive(int peer, int tag, std::byte* data, int64_t bytes) {
    pieces(bytes, [&](int64_t begin, int count) {
      MPI_Irecv(data + begin, count, MPI_BYTE, peer, tag, comm_, add(peer, false));
    });
  }

  // Waits for all; the peers of what is still outstanding when the time is up, or when `given_up`
  // becomes true, else nothing.
  std::vector<int> wait(std::chrono::duration<double> timeout,
                        const std::atomic<bool>* given_up = nullptr) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    for (;;) {
      int done = 0;
      MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
      if (done != 0) return {};
      const auto waited = Clock::now() - begin;
      if (waited > timeout || (given_up != nullptr && *given_up)) return outstanding();
      // A rank that waits must not keep the one it waits for from a core; but one that sleeps takes
      // as long as a small message to wake up.
      if (waited < std::chrono::microseconds(200)) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(
            std::chrono::microseconds(waited < std::chrono::milliseconds(20) ? 20 : 200));
      }
    }
  }

 private:
  static constexpr int64_t kLargestMessage = int64_t{1} << 30;  // MPI counts are ints

  template <typename F>
  static void pieces(int64_t bytes, F&& f) {
    for (int64_t begin = 0; begin < bytes; begin += kLargestMessage) {
      f(begin, static_cast<int>(std::min(kLargestMessage, bytes - begin)));
    }
  }

  MPI_Request* add(int peer, bool outgoing) {
    peers_.push_back(peer);
    outgoing_.push_back(outgoing ? 1 : 0);
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  std::vector<int> outstanding() {
    std::vector<int> result;
    for (size_t k = 0; k < requests_.size(); ++k) {
      int done = 0;
      MPI_Test(&requests_[k], &done, MPI_STATUS_IGNORE);
      if (done == 0) result.push_back(peers_[k]);
    }
    std::ranges::sort(result);
    const auto rest = std::ranges::unique(result);
    result.erase(rest.begin(), rest.end());
    return result;
  }

  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
  std::vector<int> peers_;      // of each request
  std::vector<char> outgoing_;  // whether it sends
};

}  // namespace autosp::executor
