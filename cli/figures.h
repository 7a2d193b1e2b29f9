// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace autosp::cli {

// "1.25 s", "12.5 ms", "3.1 \u00b5s" (with the sign for micro).
std::string format_seconds(double seconds);
// "1.23 GFLOP/s", "4.5 MB/s": powers of 1000. "" when the rate is no finite number above 0.
std::string format_rate(double per_second, const std::string& unit);
// "1.2e-06", "0", "not finite".
std::string format_error(double error);
// "37 %", "0.4 %"; "" of nothing.
std::string format_share(double part, double whole);
// "12 345".
std::string format_count(int64_t count);

}  // namespace autosp::cli
