#include "figures.h"

#include <fmt/format.h>

#include <cmath>
#include <string_view>

namespace autosp::cli {

std::string format_seconds(double seconds) {
  if (!std::isfinite(seconds)) return "unknown";
  if (seconds == 0) return "0 s";
  if (seconds < 1e-3) return fmt::format("{:.3g} \u00b5s", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.4g} s", seconds);
}

std::string format_rate(double per_second, const std::string& unit) {
  if (!std::isfinite(per_second) || per_second <= 0) return "";
  constexpr std::string_view kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  size_t k = 0;
  while (per_second >= 1000 && k + 1 < std::size(kPrefixes)) {
    per_second /= 1000;
    ++k;
  }
  return fmt::format("{:.3g} {}{}", per_second, kPrefixes[k], unit);
}

std::string format_error(double error) {
  if (!std::isfinite(error)) return "not finite";
  return error == 0 ? "0" : fmt::format("{:.2e}", error);
}

std::string format_share(double part, double whole) {
  if (!(whole > 0) || !std::isfinite(part)) return "";
  const double percent = 100 * part / whole;
  return percent > 0 && percent < 9.95 ? fmt::format("{:.1f} %", percent)
                                       : fmt::format("{:.0f} %", percent);
}

std::string format_count(int64_t count) {
  std::string digits = fmt::format("{}", count);
  const size_t first = count < 0 ? 1 : 0;
  constexpr size_t kGroup = 3;
  for (size_t at = digits.size(); at > first + kGroup;) {
    at -= kGroup;
    digits.insert(at, "\u2009");  // a thin space
  }
  return digits;
}

}  // namespace autosp::cli
