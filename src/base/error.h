// Diagnostics a user can act on.
//
// An Error is thrown for what a user can cause: a bad file, an impossible request. It renders as
//
//   error: what is wrong, with the node, operator, values and numbers involved
//   note: where that came from
//   help: what to do about it
//
// What only a bug can cause is an InternalError (see AUTOSP_CHECK).
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace autosp {

class Error : public std::exception {
 public:
  explicit Error(std::string message);
  template <typename... Args>
  explicit Error(fmt::format_string<Args...> format, Args&&... args)
      : Error(fmt::format(format, std::forward<Args>(args)...)) {}

  // Each adds a line and returns *this, so that an error is thrown in one expression:
  //   throw Error("...").note("...").help("...");
  Error& note(std::string text);
  Error& help(std::string text);

  const std::string& message() const { return message_; }
  const std::vector<std::string>& notes() const { return notes_; }
  const std::vector<std::string>& helps() const { return helps_; }

  // All lines, each with its prefix, without a trailing newline.
  const char* what() const noexcept override { return rendered_.c_str(); }

 private:
  void render();

  std::string message_;
  std::vector<std::string> notes_;
  std::vector<std::string> helps_;
  std::string rendered_;
};

class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] void internal_error(const char* file, int line, const std::string& message);

// The candidate nearest to `name` by edit distance, or "" when none is near enough to suggest.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

// "1.50 GiB", "312 KiB", "17 B".
std::string format_bytes(double bytes);

}  // namespace autosp

// Checks an invariant that holds unless this program has a bug; extra arguments are a fmt message.
#define AUTOSP_CHECK(condition, ...)                                                         \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      ::autosp::internal_error(                                                              \
          __FILE__, __LINE__,                                                                \
          std::string("check failed: " #condition) + ::autosp::detail::suffix(__VA_ARGS__)); \
    }                                                                                        \
  } while (false)

namespace autosp::detail {
inline std::string suffix() { return {}; }
template <typename... Args>
std::string suffix(fmt::format_string<Args...> format, Args&&... args) {
  return ": " + fmt::format(format, std::forward<Args>(args)...);
}
}  // namespace autosp::detail
