#include "executor/transport/mpi.h"

#include <fmt/ranges.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/error.h"
#include "executor/transport/boxes.h"
#include "executor/transport/checked.h"

namespace autosp::executor {

namespace {

constexpr int kHeaderTag = 1;
constexpr int kDataTag = 2;
constexpr int64_t kLargestMessage = int64_t{1} << 30;  // MPI counts are ints

struct Header {
  char description[448];  // describe(collective), cut to fit
  uint64_t identity;      // hash of all that must be equal among members
  int64_t bytes;          // that follow from the sender
};

uint64_t hash(std::string_view text) {  // FNV-1a
  uint64_t result = 0xcbf29ce484222325U;
  for (char c : text) result = (result ^ static_cast<uint8_t>(c)) * 0x100000001b3U;
  return result;
}

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

  // Waits for all; the peers of what is still outstanding when the time is up, else nothing.
  std::vector<int> wait(std::chrono::duration<double> timeout) {
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + timeout;
    for (int tries = 0;; ++tries) {
      int done = 0;
      MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
      if (done != 0) return {};
      // A rank that waits must not keep the one it waits for from a core.
      if (tries < 100) {
        std::this_thread::yield();
      } else {
        if (Clock::now() > deadline) return outstanding();
        std::this_thread::sleep_for(std::chrono::microseconds(tries < 1000 ? 20 : 200));
      }
    }
  }

 private:
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

class MpiCommunicator final : public CheckedCommunicator {
 public:
  explicit MpiCommunicator(double timeout_seconds) : timeout_(timeout_seconds) {
    MPI_Comm_dup(MPI_COMM_WORLD, &comm_);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
  }
  ~MpiCommunicator() override {
    // Freeing is collective; after a failure the others will not come.
    if (!failed_) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int64_t staging_bytes() const override {
    return static_cast<int64_t>(send_staging_.capacity() + receive_staging_.capacity());
  }

 private:
  void exchange(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                const std::vector<Box>& send, const std::vector<Box>& receive) override {
    const size_t element = ir::element_size(collective.dtype);
    const size_t me = member(collective);
    std::vector<int64_t> sent(send.size());
    std::vector<int64_t> received(send.size());
    for (size_t i = 0; i < send.size(); ++i) {
      if (i == me) continue;
      sent[i] = send[i].num_elements() * static_cast<int64_t>(element);
      received[i] = receive[i].num_elements() * static_cast<int64_t>(element);
    }
    announce(collective, me, sent, received);

    const std::vector<std::byte*> outgoing = staging(send_staging_, sent);
    const std::vector<std::byte*> incoming = staging(receive_staging_, received);
    Messages messages(comm_);
    for (size_t i = 0; i < send.size(); ++i) {
      messages.receive(collective.group[i], kDataTag, incoming[i], received[i]);
    }
    for (size_t i = 0; i < send.size(); ++i) {
      if (i == me) continue;
      pack_box(element, x, send[i], outgoing[i]);
      messages.send(collective.group[i], kDataTag, outgoing[i], sent[i]);
    }
    copy_box(element, x, send[me], y, receive[me]);
    finish(collective, messages);
    for (size_t i = 0; i < send.size(); ++i) {
      if (i != me) unpack_box(element, incoming[i], y, receive[i]);
    }
  }

  void reduce_boxes(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                    const std::vector<Box>& parts) override {
    const size_t element = ir::element_size(collective.dtype);
    std::vector<int64_t> sent(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      sent[i] = parts[i].num_elements() * static_cast<int64_t>(element);
    }
    const std::vector<std::byte*> outgoing = staging(send_staging_, sent);
    for (size_t i = 0; i < parts.size(); ++i) pack_box(element, x, parts[i], outgoing[i]);
    reduce_packed(collective, outgoing, sent, static_cast<std::byte*>(y.data));
  }

  // Each member sums one part for all, and sends it to them.
  void reduce_all(const Collective& collective, const std::byte* x, std::byte* y,
                  int64_t count) override {
    const size_t me = member(collective);
    const size_t members = collective.group.size();
    const auto element = static_cast<int64_t>(ir::element_size(collective.dtype));
    const std::vector<int64_t> cuts = even_cuts(count, members);
    std::vector<int64_t> sizes(members);
    std::vector<std::byte*> parts(members);
    for (size_t i = 0; i < members; ++i) {
      sizes[i] = (cuts[i + 1] - cuts[i]) * element;
      parts[i] = const_cast<std::byte*>(x) + cuts[i] * element;  // NOLINT: only read
    }
    reduce_packed(collective, parts, sizes, y + cuts[me] * element);

    Messages messages(comm_);
    for (size_t i = 0; i < members; ++i) {
      if (i == me) continue;
      messages.receive(collective.group[i], kDataTag, y + cuts[i] * element, sizes[i]);
      messages.send(collective.group[i], kDataTag, y + cuts[me] * element, sizes[me]);
    }
    finish(collective, messages);
  }

  // out = the sum over members of what each has for this one; parts[i] goes to member i.
  void reduce_packed(const Collective& collective, const std::vector<std::byte*>& parts,
                     std::vector<int64_t> sizes, std::byte* out) {
    const size_t me = member(collective);
    const int64_t mine = sizes[me];
    std::vector<int64_t> received(parts.size(), mine);
    received[me] = 0;
    sizes[me] = 0;
    announce(collective, me, sizes, received);

    const std::vector<std::byte*> incoming = staging(receive_staging_, received);
    Messages messages(comm_);
    for (size_t i = 0; i < parts.size(); ++i) {
      messages.receive(collective.group[i], kDataTag, incoming[i], received[i]);
      messages.send(collective.group[i], kDataTag, parts[i], sizes[i]);
    }
    finish(collective, messages);
    std::vector<const std::byte*> terms(incoming.begin(), incoming.end());
    terms[me] = parts[me];
    sum_in_order(collective.dtype, terms,
                 mine / static_cast<int64_t>(ir::element_size(collective.dtype)), out);
  }

  // Tells the members what this rank calls, and checks that they call the same and send what this
  // rank expects of them.
  void announce(const Collective& collective, size_t me, const std::vector<int64_t>& sent,
                const std::vector<int64_t>& expected) {
    const size_t members = collective.group.size();
    const std::string description = describe(collective);
    std::vector<Header> outgoing(members);
    std::vector<Header> incoming(members);
    Messages messages(comm_);
    for (size_t i = 0; i < members; ++i) {
      if (i == me) continue;
      Header& header = outgoing[i];
      std::memset(&header, 0, sizeof(header));
      description.copy(header.description, sizeof(header.description) - 1);
      header.identity = hash(description);
      header.bytes = sent[i];
      messages.receive(collective.group[i], kHeaderTag, reinterpret_cast<std::byte*>(&incoming[i]),
                       sizeof(Header));
      messages.send(collective.group[i], kHeaderTag, reinterpret_cast<const std::byte*>(&header),
                    sizeof(Header));
    }
    // The time-out is the collective's: data follows at once when all headers are here.
    finish(collective, messages);
    for (size_t i = 0; i < members; ++i) {
      if (i == me) continue;
      if (incoming[i].identity != hash(description)) {
        fail(Error("ranks call different collectives: rank {} calls {}, but rank {} calls {}",
                   rank_, description, collective.group[i], incoming[i].description));
      }
      if (incoming[i].bytes != expected[i]) {
        fail(Error("{}: rank {} sends {} bytes to rank {}, which expects {}", description,
                   collective.group[i], incoming[i].bytes, rank_, expected[i]));
      }
    }
  }

  void finish(const Collective& collective, Messages& messages) {
    const std::vector<int> missing = messages.wait(timeout_);
    if (missing.empty()) return;
    fail(Error("rank {} has waited {:.4g} s in {} for rank{} {}", rank_, timeout_.count(),
               describe(collective), missing.size() == 1 ? "" : "s", fmt::join(missing, ", "))
             .help("the ranks' graphs do not belong together, or a rank is slow: then allow it "
                   "more time"));
  }

  [[noreturn]] void fail(const Error& error) {
    failed_ = true;
    throw error;
  }

  // One stretch of `memory` per member, 64-byte aligned relative to each other.
  static std::vector<std::byte*> staging(std::vector<std::byte>& memory,
                                         const std::vector<int64_t>& sizes) {
    size_t total = 0;
    std::vector<size_t> offsets;
    for (int64_t size : sizes) {
      offsets.push_back(total);
      total += (static_cast<size_t>(size) + 63) / 64 * 64;
    }
    if (memory.size() < total) memory.resize(total);
    std::vector<std::byte*> result;
    for (size_t offset : offsets) result.push_back(memory.data() + offset);
    return result;
  }

  std::chrono::duration<double> timeout_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  bool failed_ = false;
  std::vector<std::byte> send_staging_;  // kept from one collective to the next
  std::vector<std::byte> receive_staging_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(double timeout_seconds) {
  return std::make_unique<MpiCommunicator>(timeout_seconds);
}

}  // namespace autosp::executor
