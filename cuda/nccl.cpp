#include "cuda/nccl.h"

#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <set>

#include "cuda/library.h"
#include "cuda/status.h"
#include "executor/transport/boxes.h"
#include "executor/transport/checked.h"

namespace autosp::cuda {

using executor::Box;
using executor::Buffer;
using executor::Collective;
using executor::ConstBuffer;
using executor::StreamId;

namespace {

struct Nccl {
// NOLINTBEGIN(bugprone-macro-parentheses): it declares a member
#define AUTOSP_NCCL(name) \
  decltype(::nccl##name)* name = nccl().function<decltype(::nccl##name)>("nccl" #name)
  AUTOSP_NCCL(GetUniqueId);
  AUTOSP_NCCL(CommInitRank);
  AUTOSP_NCCL(CommDestroy);
  AUTOSP_NCCL(CommAbort);
  AUTOSP_NCCL(GetErrorString);
  AUTOSP_NCCL(GetLastError);
  AUTOSP_NCCL(GroupStart);
  AUTOSP_NCCL(GroupEnd);
  AUTOSP_NCCL(Send);
  AUTOSP_NCCL(Recv);
  AUTOSP_NCCL(Reduce);
  AUTOSP_NCCL(AllReduce);
#undef AUTOSP_NCCL
  // NOLINTEND(bugprone-macro-parentheses)
};

const Nccl& functions() {
  static const Nccl kNccl;
  return kNccl;
}

void check_nccl(ncclResult_t status, const char* what) {
  if (status == ncclSuccess) return;
  throw Error("NCCL: {}: {}", what, functions().GetErrorString(status))
      .note(functions().GetLastError(nullptr))
      .help("NCCL_DEBUG=INFO says more; run with --device cpu otherwise");
}

ncclDataType_t type_of(ir::DataType type) {
  switch (type) {
    case ir::DataType::kFloat32:
      return ncclFloat32;
    case ir::DataType::kFloat64:
      return ncclFloat64;
    case ir::DataType::kFloat16:
      return ncclFloat16;
    case ir::DataType::kBFloat16:
      return ncclBfloat16;
    case ir::DataType::kInt64:
      return ncclInt64;
    case ir::DataType::kInt32:
      return ncclInt32;
    case ir::DataType::kUInt64:
      return ncclUint64;
    case ir::DataType::kUInt32:
      return ncclUint32;
    case ir::DataType::kInt8:
      return ncclInt8;
    case ir::DataType::kUInt8:
      return ncclUint8;
    default:
      throw Error("NCCL cannot sum {}", ir::name_of(type)).help("run with --transport threads");
  }
}

// Device memory that grows with what is asked of it.
class Staging {
 public:
  explicit Staging(CudaDevice& device) : device_(device) {}
  ~Staging() {
    if (memory_ != nullptr) device_.release(memory_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  std::byte* of(int64_t bytes) {
    if (bytes <= size_) return memory_;
    device_.synchronize();
    if (memory_ != nullptr) device_.release(memory_);
    memory_ = device_.allocate(bytes);
    size_ = bytes;
    return memory_;
  }
  int64_t size() const { return size_; }

 private:
  CudaDevice& device_;
  std::byte* memory_ = nullptr;
  int64_t size_ = 0;
};

class NcclCommunicator final : public executor::CheckedCommunicator {
 public:
  NcclCommunicator(CudaDevice& device, executor::Communicator& host)
      : device_(device), host_(host), sent_(device), received_(device) {}
  ~NcclCommunicator() override {
    // While an error unwinds, the others may be in a collective that this rank will not come to.
    const bool fails = std::uncaught_exceptions() > 0;
    for (const auto& [group, communicator] : groups_) {
      if (communicator == nullptr) continue;
      fails ? functions().CommAbort(communicator) : functions().CommDestroy(communicator);
    }
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  bool use(executor::Device* device) override { return device == nullptr || device == &device_; }
  int64_t staging_bytes() const override { return sent_.size() + received_.size(); }

 private:
  static constexpr StreamId kStream = StreamId::kExchange;
  cudaStream_t stream() const { return device_.stream(kStream); }

  // Made when a group's first collective comes, which all its members come to in the same order.
  ncclComm_t communicator(const Collective& collective) {
    ncclComm_t& found = groups_[collective.group];
    if (found != nullptr) return found;
    const size_t members = collective.group.size();
    ncclUniqueId own{};
    if (member(collective) == 0) {
      check_nccl(functions().GetUniqueId(&own), "naming a group");
    }
    constexpr auto kBytes = static_cast<int64_t>(sizeof(ncclUniqueId));
    std::vector<ncclUniqueId> all(members);
    host_.all_gather({"NCCL's identifier", "AllGather", collective.group, ir::DataType::kUInt8},
                     {&own, {kBytes}}, {all.data(), {kBytes * static_cast<int64_t>(members)}}, 0,
                     std::vector<int64_t>(members, kBytes));
    check_nccl(functions().CommInitRank(&found, static_cast<int>(members), all.front(),
                                        static_cast<int>(member(collective))),
               "joining a group");
    return found;
  }

  // Packed by member on both sides; each box of the result is taken out of what came.
  void exchange(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                const std::vector<Box>& send, const std::vector<Box>& receive) override {
    ncclComm_t group = communicator(collective);
    const size_t size = ir::element_size(collective.dtype);
    const Packed out = pack(x, send, size, sent_);
    const Packed in = room(receive, size, received_);
    check_nccl(functions().GroupStart(), "exchanging");
    for (size_t i = 0; i < send.size(); ++i) {
      const int peer = static_cast<int>(i);
      check_nccl(functions().Send(out.at[i], out.bytes[i], ncclUint8, peer, group, stream()),
                 "sending");
      check_nccl(functions().Recv(in.at[i], in.bytes[i], ncclUint8, peer, group, stream()),
                 "receiving");
    }
    check_nccl(functions().GroupEnd(), "exchanging");
    for (size_t i = 0; i < receive.size(); ++i) {
      const ir::Shape flat{receive[i].num_elements()};
      device_.copy_box(kStream, size, {in.at[i], flat}, executor::whole_box(flat), y, receive[i]);
    }
  }

  // A reduction to each member in turn: parts may be of different sizes.
  void reduce_boxes(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                    const std::vector<Box>& parts) override {
    ncclComm_t group = communicator(collective);
    const size_t size = ir::element_size(collective.dtype);
    const Packed out = pack(x, parts, size, sent_);
    check_nccl(functions().GroupStart(), "reducing");
    for (size_t i = 0; i < parts.size(); ++i) {
      check_nccl(
          functions().Reduce(out.at[i], y.data, out.bytes[i] / size, type_of(collective.dtype),
                             ncclSum, static_cast<int>(i), group, stream()),
          "reducing");
    }
    check_nccl(functions().GroupEnd(), "reducing");
  }

  void reduce_all(const Collective& collective, const std::byte* x, std::byte* y,
                  int64_t count) override {
    check_nccl(functions().AllReduce(x, y, static_cast<size_t>(count), type_of(collective.dtype),
                                     ncclSum, communicator(collective), stream()),
               "reducing");
  }

  struct Packed {
    std::vector<std::byte*> at;  // by member
    std::vector<size_t> bytes;
  };

  static Packed room(const std::vector<Box>& boxes, size_t size, Staging& staging) {
    Packed packed;
    int64_t total = 0;
    for (const Box& box : boxes) {
      packed.bytes.push_back(static_cast<size_t>(box.num_elements()) * size);
      total += aligned(packed.bytes.back());
    }
    std::byte* next = staging.of(std::max<int64_t>(total, 1));
    for (const size_t bytes : packed.bytes) {
      packed.at.push_back(next);
      next += aligned(bytes);
    }
    return packed;
  }
  static int64_t aligned(size_t bytes) { return static_cast<int64_t>((bytes + 255) / 256 * 256); }

  Packed pack(const ConstBuffer& x, const std::vector<Box>& boxes, size_t size, Staging& staging) {
    Packed packed = room(boxes, size, staging);
    for (size_t i = 0; i < boxes.size(); ++i) {
      const ir::Shape flat{boxes[i].num_elements()};
      device_.copy_box(kStream, size, x, boxes[i], {packed.at[i], flat}, executor::whole_box(flat));
    }
    return packed;
  }

  CudaDevice& device_;
  executor::Communicator& host_;
  Staging sent_;
  Staging received_;
  std::map<std::vector<int>, ncclComm_t> groups_;
};

// Machine and GPU, as other ranks can compare them.
std::vector<char> place_of(const CudaDevice& device) {
  std::vector<char> place(128, 0);
  gethostname(place.data(), 63);
  check(cudaDeviceGetPCIBusId(place.data() + 64, 63, device.ordinal()), "asking where a GPU is");
  return place;
}

bool ranks_share_a_gpu(const CudaDevice& device, executor::Communicator& host) {
  const std::vector<char> own = place_of(device);
  const auto bytes = static_cast<int64_t>(own.size());
  const auto ranks = static_cast<size_t>(host.size());
  std::vector<int> group(ranks);
  for (size_t k = 0; k < ranks; ++k) group[k] = static_cast<int>(k);
  std::vector<char> all(own.size() * ranks);
  host.all_gather({"the ranks' GPUs", "AllGather", group, ir::DataType::kUInt8},
                  {own.data(), {bytes}}, {all.data(), {bytes * host.size()}}, 0,
                  std::vector<int64_t>(ranks, bytes));
  std::set<std::string> places;
  for (size_t k = 0; k < ranks; ++k) {
    places.emplace(all.data() + k * own.size(), own.size());
  }
  return places.size() < ranks;
}

}  // namespace

std::unique_ptr<executor::Communicator> make_nccl_communicator(CudaDevice& device,
                                                               executor::Communicator& host,
                                                               std::string& notice) {
  if (host.size() == 1) return nullptr;
  if (ranks_share_a_gpu(device, host)) {
    notice = "ranks share a GPU, between which NCCL does not exchange (--transport threads does)";
    return nullptr;
  }
  if (nccl().handle() == nullptr) {
    notice = "NCCL was not found";
    return nullptr;
  }
  return std::make_unique<NcclCommunicator>(device, host);
}

}  // namespace autosp::cuda
