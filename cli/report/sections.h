// The sections of a report's page.
#pragma once

#include "report/data.h"
#include "report/page_parts.h"

namespace autosp::cli {

// Scales that two reports share, so that their charts can be compared; 0: each its own.
struct Scales {
  double memory = 0;
  double seconds = 0;
};

Section peak_section(const ReportData& report, const Scales& scales);
Section memory_section(const ReportData& report, const Scales& scales);
Section collective_section(const ReportData& report);
Section timeline_section(const ReportData& report, const Scales& scales);
Section rate_section(const ReportData& report);
Section layer_section(const ReportData& report);
Section validation_section(const ReportData& report);

}  // namespace autosp::cli
