// The style sheet of reports, for light and dark screens and for paper, and its classes.
#pragma once

#include <string>
#include <string_view>

namespace autosp::cli {

std::string_view report_style_sheet();

// Classes of marks.
std::string bucket_style(const std::string& bucket);  // of memory
std::string segment_style(const std::string& kind);   // of a time line
std::string family_style(const std::string& family);  // of an operator
std::string part_style(size_t part);                  // of a tensor that ranks share

}  // namespace autosp::cli
