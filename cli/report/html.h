// Reports as one HTML page each, without scripts and without anything that is loaded from
// elsewhere.
#pragma once

#include <string>

#include "report/data.h"

namespace autosp::cli {

std::string report_page(const ReportData& report);

// Two reports side by side, the first as what the second is measured against.
std::string comparison_page(const ReportData& first, const ReportData& second);

// The sentence that a page begins with, as text.
std::string headline(const ReportData& report);

}  // namespace autosp::cli
