// Overruns of arena memory, in builds with the address sanitizer; elsewhere this does nothing.
//
// The sanitizer knows nothing of what lies where in an arena. So around each step every byte is
// forbidden to instrumented code but those that the step was given: operands, results and scratch
// memory. An overrun into another of these still goes unnoticed.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace autosp::executor {

class ArenaGuard {
 public:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kActive = true;
  ArenaGuard(const std::byte* base, int64_t bytes)
      : base_(base), bytes_(static_cast<size_t>(bytes)) {}
  ~ArenaGuard() { allow_all(); }

  void forbid_all() { __asan_poison_memory_region(base_, bytes_); }
  void allow_all() { __asan_unpoison_memory_region(base_, bytes_); }
  void allow(int64_t offset, int64_t size) {
    __asan_unpoison_memory_region(base_ + offset, static_cast<size_t>(size));
  }

 private:
  const std::byte* base_;
  size_t bytes_;

 public:
#else
  static constexpr bool kActive = false;
  ArenaGuard(const std::byte* /*base*/, int64_t /*bytes*/) {}
  ~ArenaGuard() = default;
  void forbid_all() {}
  void allow_all() {}
  void allow(int64_t /*offset*/, int64_t /*size*/) {}
#endif
  ArenaGuard(const ArenaGuard&) = delete;
  ArenaGuard& operator=(const ArenaGuard&) = delete;
};

}  // namespace autosp::executor
