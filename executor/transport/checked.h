// What all transports share: checking a collective's arguments, and writing the four collectives in
// terms of three primitives.
#pragma once

#include "executor/communicator.h"

namespace autosp::executor {

class CheckedCommunicator : public Communicator {
 public:
  void all_reduce(const Collective& collective, const ConstBuffer& x, const Buffer& y) final;
  void all_gather(const Collective& collective, const ConstBuffer& x, const Buffer& y, size_t axis,
                  const std::vector<int64_t>& sizes) final;
  void reduce_scatter(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                      size_t axis, const std::vector<int64_t>& sizes) final;
  void all_to_all(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                  const std::vector<Box>& send, const std::vector<Box>& receive) final;

 protected:
  // Box send[i] of x to member i; box receive[i] of y from member i.
  virtual void exchange(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                        const std::vector<Box>& send, const std::vector<Box>& receive) = 0;
  // y = the sum over members of box parts[me] of x.
  virtual void reduce_boxes(const Collective& collective, const ConstBuffer& x, const Buffer& y,
                            const std::vector<Box>& parts) = 0;
  // y = the sum over members of x, both of `count` elements.
  virtual void reduce_all(const Collective& collective, const std::byte* x, std::byte* y,
                          int64_t count) = 0;

  // This rank's position in the group.
  size_t member(const Collective& collective) const;
};

// "AllToAll "layer0/q" of float32 on group [0, 1]", for messages.
std::string describe(const Collective& collective);

// Begin and end of each member's part when `count` elements are divided evenly over `members`.
std::vector<int64_t> even_cuts(int64_t count, size_t members);

}  // namespace autosp::executor
