#include "executor/transport/mpi.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/error.h"
#include "executor/transport/boxes.h"
#include "executor/transport/checked.h"
#include "executor/transport/messages.h"

namespace autosp::executor {

namespace {

constexpr int kHeaderTag = 1;
constexpr int kDataTag = 2;
constexpr int kDoneTag = 3;
constexpr int kOfferTag = 4;
constexpr size_t kMostAxes = 8;  // of an operand that is read in place

struct Header {
  char description[448];  // describe(collective), cut to fit
  uint64_t identity;      // hash of all that must be equal among members
  int64_t bytes;          // for the receiver
  // Where the sender's operand and result lie in the memory it offered, bytes; -1: not there.
  int64_t x_offset;
  int64_t y_offset;
  // Of the operand, and of the receiver's box in it.
  int64_t axes;
  int64_t shape[kMostAxes];
  int64_t begin[kMostAxes];
  int64_t extent[kMostAxes];
};

uint64_t hash(std::string_view text) {  // FNV-1a
  uint64_t result = 0xcbf29ce484222325U;
  for (char c : text) result = (result ^ static_cast<uint8_t>(c)) * 0x100000001b3U;
  return result;
}

class MpiCommunicator final : public CheckedCommunicator {
 public:
  explicit MpiCommunicator(double timeout_seconds) : timeout_(timeout_seconds) {
    MPI_Comm_dup(MPI_COMM_WORLD, &comm_);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    peers_.resize(static_cast<size_t>(size_));
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
  int64_t own_resident_peak() override { return resident_.bytes(); }
  bool reads_in_place() const override { return size_ > 1; }
  void give_up(const std::exception_ptr&) override { given_up_ = true; }

  // Ranks of other machines, and those whose memory cannot be mapped, have no peer region.
  void offer(const SharedRegion& region) override {
    struct Offer {
      int64_t owner;
      SharedRegion region;  // its address means nothing to others
      char machine[MPI_MAX_PROCESSOR_NAME];
    };
    Offer own{getpid(), region, {}};
    int length = 0;
    MPI_Get_processor_name(own.machine, &length);
    const std::vector<Offer> offers = from_everyone(std::vector{own});
    std::vector<int> reads(peers_.size());
    for (size_t k = 0; k < peers_.size(); ++k) {
      const Offer& other = offers[k];
      peers_[k].reset();
      if (static_cast<int>(k) == rank_) {
        reads[k] = 1;
        continue;
      }
      if (other.region.file < 0 || std::strcmp(other.machine, own.machine) != 0) continue;
      peers_[k] = PeerRegion::map(static_cast<pid_t>(other.owner), other.region, resident_);
      reads[k] = peers_[k] ? 1 : 0;
    }
    // read_by_[i * size + k]: rank i reads the memory of rank k.
    read_by_ = from_everyone(reads);
    own_ = region;
  }
  void withdraw() override { own_ = {}; }

 private:
  // What every rank brings, in rank order; all bring equally much.
  template <typename T>
  std::vector<T> from_everyone(const std::vector<T>& own) {
    const auto bytes = static_cast<int64_t>(own.size() * sizeof(T));
    std::vector<T> all(own.size() * peers_.size());
    Messages messages(comm_);
    for (int k = 0; k < size_; ++k) {
      T* place = all.data() + static_cast<size_t>(k) * own.size();
      if (k == rank_) {
        std::ranges::copy(own, place);
        continue;
      }
      messages.receive(k, kOfferTag, reinterpret_cast<std::byte*>(place), bytes);
      messages.send(k, kOfferTag, reinterpret_cast<const std::byte*>(own.data()), bytes);
    }
    const std::vector<int> missing = messages.wait(timeout_);
    if (!missing.empty()) fail_waiting("the offer of memory to the other ranks", missing);
    return all;
  }

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
    const std::vector<Header> headers = announce(collective, sent, received, {x, y, &send});
    copy_box(element, x, send[me], y, receive[me]);
    if (in_place(collective, headers)) {
      for (size_t step = 1; step < send.size(); ++step) {
        const size_t from = (me + step) % send.size();  // not all from the same one at once
        pull_box(collective, headers[from], from, y, receive[from]);
      }
      return acknowledge(collective);
    }
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
    finish(collective, messages);
    for (size_t i = 0; i < send.size(); ++i) {
      if (i != me) unpack_box(element, incoming[i], y, receive[i]);
    }
  }

  void reduce_boxes(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                    const std::vector<Box>& parts) override {
    const size_t me = member(collective);
    const std::vector<int64_t> sizes = bytes_of(collective, parts);
    const std::vector<Header> headers = announce_sum(collective, sizes, {x, y, nullptr});
    if (in_place(collective, headers)) {
      const auto terms =
          operands(collective, headers, x.data, read_of(collective, parts[me], x.shape));
      sum_boxes(collective.dtype, terms, x.shape, parts[me], static_cast<std::byte*>(y.data));
      return acknowledge(collective);
    }
    const size_t element = ir::element_size(collective.dtype);
    const std::vector<std::byte*> outgoing = staging(send_staging_, sizes);
    for (size_t i = 0; i < parts.size(); ++i) pack_box(element, x, parts[i], outgoing[i]);
    reduce_packed(collective, outgoing, sizes, static_cast<std::byte*>(y.data));
  }

  // Each member sums one part for all; then they exchange these.
  void reduce_all(const Collective& collective, const std::byte* x, std::byte* y,
                  int64_t count) override {
    const size_t me = member(collective);
    const size_t members = collective.group.size();
    const auto element = static_cast<int64_t>(ir::element_size(collective.dtype));
    const std::vector<int64_t> bounds = even_cuts(count, members);  // elements
    std::vector<int64_t> cuts(members);                             // bytes
    std::vector<int64_t> sizes(members);                            // bytes
    std::vector<std::byte*> parts(members);
    for (size_t i = 0; i < members; ++i) {
      cuts[i] = bounds[i] * element;
      sizes[i] = (bounds[i + 1] - bounds[i]) * element;
      parts[i] = const_cast<std::byte*>(x) + cuts[i];  // NOLINT: only read
    }
    const auto part = [&](size_t i) {
      return std::vector{ElementRange{bounds[i], bounds[i + 1] - bounds[i]}};
    };
    const std::vector<Header> headers =
        announce_sum(collective, sizes, {{x, {count}}, {y, {count}}, nullptr});
    if (in_place(collective, headers) &&
        std::ranges::all_of(headers, [](const Header& h) { return h.y_offset >= 0; })) {
      std::vector<const std::byte*> terms = operands(collective, headers, x, part(me));
      for (const std::byte*& term : terms) term += cuts[me];
      sum_in_order(collective.dtype, terms, sizes[me] / element, y + cuts[me]);
      acknowledge(collective);
      for (size_t step = 1; step < members; ++step) {
        const size_t from = (me + step) % members;
        const std::byte* sums = of_peer(collective, from, headers[from].y_offset, part(from));
        std::copy_n(sums + cuts[from], sizes[from], y + cuts[from]);
      }
      return acknowledge(collective);
    }
    reduce_packed(collective, parts, sizes, y + cuts[me]);
    Messages messages(comm_);
    for (size_t i = 0; i < members; ++i) {
      if (i == me) continue;
      messages.receive(collective.group[i], kDataTag, y + cuts[i], sizes[i]);
      messages.send(collective.group[i], kDataTag, y + cuts[me], sizes[me]);
    }
    finish(collective, messages);
  }

  // out = the sum over members of what each has for this one; parts[i], of sizes[i] bytes, goes to
  // member i.
  void reduce_packed(const Collective& collective, const std::vector<std::byte*>& parts,
                     const std::vector<int64_t>& sizes, std::byte* out) {
    const size_t me = member(collective);
    std::vector<int64_t> received(parts.size(), sizes[me]);
    received[me] = 0;
    const std::vector<std::byte*> incoming = staging(receive_staging_, received);
    Messages messages(comm_);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i == me) continue;
      messages.receive(collective.group[i], kDataTag, incoming[i], received[i]);
      messages.send(collective.group[i], kDataTag, parts[i], sizes[i]);
    }
    finish(collective, messages);
    std::vector<const std::byte*> terms(incoming.begin(), incoming.end());
    terms[me] = parts[me];
    sum_in_order(collective.dtype, terms,
                 sizes[me] / static_cast<int64_t>(ir::element_size(collective.dtype)), out);
  }

  // --- Headers.

  // What this member brings to a collective.
  struct Brought {
    ConstBuffer x;
    Buffer y;
    const std::vector<Box>* send;  // of an exchange, else null
  };

  static std::vector<int64_t> bytes_of(const Collective& collective,
                                       const std::vector<Box>& boxes) {
    std::vector<int64_t> bytes;
    for (const Box& box : boxes) {
      bytes.push_back(box.num_elements() *
                      static_cast<int64_t>(ir::element_size(collective.dtype)));
    }
    return bytes;
  }

  // As announce, for sums: every member sends this one as much as this one keeps of its own.
  std::vector<Header> announce_sum(const Collective& collective, std::vector<int64_t> sizes,
                                   const Brought& brought) {
    const size_t me = member(collective);
    std::vector<int64_t> expected(sizes.size(), sizes[me]);
    expected[me] = 0;
    sizes[me] = 0;
    return announce(collective, sizes, expected, brought);
  }

  // Tells the members what this rank calls and where its data lie, and checks that they call the
  // same and send what this rank expects of them. Returns every member's header to this one.
  std::vector<Header> announce(const Collective& collective, const std::vector<int64_t>& sent,
                               const std::vector<int64_t>& expected, const Brought& brought) {
    const size_t me = member(collective);
    const size_t members = collective.group.size();
    std::string description = describe(collective);
    // What is summed has to be of one shape: members read each other's by their own.
    if (brought.send == nullptr) description += " of " + ir::to_string(brought.x.shape);
    std::vector<Header> outgoing(members);
    std::vector<Header> incoming(members);
    Messages messages(comm_);
    for (size_t i = 0; i < members; ++i) {
      Header& header = i == me ? incoming[i] : outgoing[i];
      fill(header, collective, brought, i);
      description.copy(header.description, sizeof(header.description) - 1);
      header.identity = hash(description);
      header.bytes = sent[i];
      if (i == me) continue;
      messages.receive(collective.group[i], kHeaderTag, reinterpret_cast<std::byte*>(&incoming[i]),
                       sizeof(Header));
      messages.send(collective.group[i], kHeaderTag, reinterpret_cast<const std::byte*>(&header),
                    sizeof(Header));
    }
    // The time-out is the collective's: data follows at once when all headers are here.
    finish(collective, messages);
    for (size_t i = 0; i < members; ++i) {
      if (i != me) check(collective, description, incoming[i], collective.group[i], expected[i]);
    }
    return incoming;
  }

  // Where the operand and the result lie, and which box of the operand is for member `to`.
  void fill(Header& header, const Collective& collective, const Brought& brought, size_t to) const {
    std::memset(&header, 0, sizeof(header));
    const auto element = static_cast<int64_t>(ir::element_size(collective.dtype));
    const ir::Shape& shape = brought.x.shape;
    header.x_offset = own_.offset_of(brought.x.data, ir::num_elements(shape) * element);
    header.y_offset = own_.offset_of(brought.y.data, ir::num_elements(brought.y.shape) * element);
    if (brought.send == nullptr) return;
    if (shape.size() > kMostAxes) header.x_offset = -1;
    if (header.x_offset < 0) return;
    const Box& box = (*brought.send)[to];
    header.axes = static_cast<int64_t>(shape.size());
    std::ranges::copy(shape, header.shape);
    std::ranges::copy(box.begin, header.begin);
    std::ranges::copy(box.extent, header.extent);
  }

  void check(const Collective& collective, const std::string& description, const Header& header,
             int other, int64_t expected) {
    if (header.identity != hash(description)) {
      fail(Error("ranks call different collectives: rank {} calls {}, but rank {} calls {}", rank_,
                 description, other, header.description)
               .note("every rank must come to the same collectives in the same order")
               .help("the ranks' graphs do not belong together: shard the model again"));
    }
    if (header.bytes != expected) {
      fail(Error("{}: rank {} sends {} bytes to rank {}, which expects {}", describe(collective),
                 other, header.bytes, rank_, expected)
               .note("every rank must send what the others expect")
               .help("the ranks' graphs do not belong together: shard the model again"));
    }
  }

  // --- Reading in place.

  // Whether all members read each other's operands where they lie. All come to the same answer.
  bool in_place(const Collective& collective, const std::vector<Header>& headers) const {
    if (read_by_.empty()) return false;
    for (size_t i = 0; i < headers.size(); ++i) {
      if (headers[i].x_offset < 0) return false;
      for (int other : collective.group) {
        const int reader = collective.group[i];
        if (reader != other &&
            read_by_[static_cast<size_t>(reader) * peers_.size() + static_cast<size_t>(other)] ==
                0) {
          return false;
        }
      }
    }
    return true;
  }

  // Data at `offset` of what member i has offered, of which these elements are to be read.
  const std::byte* of_peer(const Collective& collective, size_t i, int64_t offset,
                           const std::vector<ElementRange>& read) {
    PeerRegion& region = *peers_[static_cast<size_t>(collective.group[i])];
    const auto element = static_cast<int64_t>(ir::element_size(collective.dtype));
    for (const ElementRange& range : read) {
      region.map_pages(offset + range.begin * element, range.count * element);
    }
    return region.at(offset);
  }

  static std::vector<ElementRange> read_of(const Collective& collective, const Box& box,
                                           const ir::Shape& shape) {
    constexpr int64_t kPage = 4096;
    return ranges_of(box, shape, kPage / static_cast<int64_t>(ir::element_size(collective.dtype)));
  }

  void pull_box(const Collective& collective, const Header& header, size_t from, const Buffer& y,
                const Box& to) {
    const auto axes = static_cast<size_t>(header.axes);
    const ir::Shape shape(header.shape, header.shape + axes);
    const Box box{{header.begin, header.begin + axes}, {header.extent, header.extent + axes}};
    const std::byte* x =
        of_peer(collective, from, header.x_offset, read_of(collective, box, shape));
    copy_box(ir::element_size(collective.dtype), {x, shape}, box, y, to);
  }

  // Every member's operand, of which these elements are to be read.
  std::vector<const std::byte*> operands(const Collective& collective,
                                         const std::vector<Header>& headers, const void* own,
                                         const std::vector<ElementRange>& read) {
    std::vector<const std::byte*> result;
    for (size_t i = 0; i < headers.size(); ++i) {
      result.push_back(collective.group[i] == rank_
                           ? static_cast<const std::byte*>(own)
                           : of_peer(collective, i, headers[i].x_offset, read));
    }
    return result;
  }

  // Returns when all members have come this far.
  void acknowledge(const Collective& collective) {
    std::byte token{};
    std::vector<std::byte> tokens(collective.group.size());
    Messages messages(comm_);
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (collective.group[i] == rank_) continue;
      messages.receive(collective.group[i], kDoneTag, &tokens[i], 1);
      messages.send(collective.group[i], kDoneTag, &token, 1);
    }
    finish(collective, messages);
  }

  void finish(const Collective& collective, Messages& messages) {
    const std::vector<int> missing = messages.wait(timeout_, &given_up_);
    if (given_up_) {
      failed_ = true;
      throw Interrupted();
    }
    if (!missing.empty()) fail_waiting(describe(collective), missing);
  }

  [[noreturn]] void fail_waiting(const std::string& where, const std::vector<int>& missing) {
    fail(Error("rank {} has waited {:.4g} s in {} for rank{} {}", rank_, timeout_.count(), where,
               missing.size() == 1 ? "" : "s", fmt::join(missing, ", "))
             .note("a collective ends when every rank of its group has come to it")
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
  std::atomic<bool> given_up_ = false;
  SharedRegion own_;
  OwnResidentPeak resident_;
  std::vector<std::optional<PeerRegion>> peers_;  // what other ranks offered, if it can be mapped
  std::vector<int> read_by_;  // [reader * size + owner]: whether it can; empty before any offer
  std::vector<std::byte> send_staging_;  // kept from one collective to the next
  std::vector<std::byte> receive_staging_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(double timeout_seconds) {
  return std::make_unique<MpiCommunicator>(timeout_seconds);
}

}  // namespace autosp::executor
