// What ranks use to talk to each other: the four collectives of docs/collectives.md.
//
// All ranks of a group call the same collectives in the same order, each with its own data. A
// collective returns when this rank's result is complete and its operand may be overwritten. Sums
// are taken in group order, so that all members hold the same bits.
//
// Errors end every rank, and name the collective, this rank and the others concerned:
//   - members call different collectives, or their sizes do not fit together;
//   - a member does not come within the time-out.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "executor/resident.h"
#include "executor/shared_memory.h"
#include "ir/type.h"

namespace autosp::executor {

// Which collective this is, for order checks and messages.
struct Collective {
  std::string node;        // the node's name
  std::string op;          // "AllReduce", ...
  std::vector<int> group;  // global ranks, in group order; this rank is among them
  ir::DataType dtype = ir::DataType::kUndefined;
};

// Row-major memory, of the host or of the device in use (Communicator::use).
struct ConstBuffer {
  const void* data = nullptr;
  ir::Shape shape;
};
struct Buffer {
  void* data = nullptr;
  ir::Shape shape;
};

// Elements [begin[k], begin[k] + extent[k]) along every axis k.
struct Box {
  std::vector<int64_t> begin;
  std::vector<int64_t> extent;
  int64_t num_elements() const { return ir::num_elements(extent); }
};

class Device;

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Memory that it holds between collectives, bytes; it only grows.
  virtual int64_t staging_bytes() const { return 0; }

  // This process's high-water mark of resident memory, bytes, without pages of other processes that
  // it reads where they lie.
  virtual int64_t own_resident_peak() { return resident_peak(); }

  // Whether the other ranks read operands where they lie, if these lie in memory that was offered.
  virtual bool reads_in_place() const { return false; }
  // All ranks call this together: what each of them offers until its next offer.
  virtual void offer(const SharedRegion&) {}
  // What this rank has offered goes: from its next collective on, nobody reads there. Unlike an
  // offer this is of one rank alone.
  virtual void withdraw() {}

  // This rank cannot go on, for that reason: a collective that waits, of this rank or of one that
  // waits for it, ends by throwing Interrupted. May be called while another thread is in one.
  virtual void give_up(const std::exception_ptr&) {}

  // Operands and results lie in this device's memory from now on, and collectives are queued on its
  // kExchange stream: they return before they are done. Null: host memory again. False: it knows
  // host memory alone. All ranks call this together.
  virtual bool use(Device* device) { return device == nullptr; }

  // y = sum of the members' x; equal shapes. y may be x.
  virtual void all_reduce(const Collective& collective, const ConstBuffer& x, const Buffer& y) = 0;

  // y is the members' x, concatenated along `axis`; member i has sizes[i] entries.
  virtual void all_gather(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                          size_t axis, const std::vector<int64_t>& sizes) = 0;

  // y is this member's sizes[i] entries along `axis` of the sum of the members' x.
  virtual void reduce_scatter(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                              size_t axis, const std::vector<int64_t>& sizes) = 0;

  // Box send[i] of x goes to member i; what comes from member i fills box receive[i] of y. Elements
  // travel in row-major order.
  virtual void all_to_all(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                          const std::vector<Box>& send, const std::vector<Box>& receive) = 0;
};

// Thrown in a rank because another one failed; the other's error is the one to report.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "ended because another rank failed"; }
};

}  // namespace autosp::executor
