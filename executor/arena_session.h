// What a session is on any device (session.h): where its values are kept, and what happens around a
// run. Memory, and the runs themselves, are the derived class's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "executor/session.h"
#include "executor/session_values.h"

namespace autosp::executor {

class ArenaSession : public Session {
 public:
  void keep(const std::string& name, const ir::Tensor& value) final;
  void keep_zeros(const std::string& name) final;
  ir::Tensor kept(const std::string& name) final;
  int64_t kept_bytes(const std::string& name) const final;
  RankResult run(const Program& program, const Arrays& feeds) final;

 protected:
  // `programs`: of one compile_turns().
  explicit ArenaSession(const std::vector<const Program*>& programs) : values_(programs) {}

  using Wanted = std::function<bool(const ir::Output&)>;
  // One step, of feeds that have been checked. Its result has the outputs that are wanted.
  virtual RankResult run_program(const Program& program, const Arrays& feeds,
                                 const Wanted& wanted) = 0;

  // Of the arena, at an offset; never of no bytes.
  virtual void write(int64_t offset, std::span<const std::byte> bytes) = 0;
  virtual void clear(int64_t offset, int64_t bytes) = 0;
  virtual void read(int64_t offset, std::span<std::byte> to) = 0;
  virtual void copy(int64_t from, int64_t to, int64_t bytes) = 0;

 private:
  void put(const std::string& name, const ir::Tensor& value);

  SessionValues values_;
};

}  // namespace autosp::executor
