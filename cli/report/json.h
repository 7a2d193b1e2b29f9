// Reports as JSON: `report --json` writes one, `report --compare` reads it again.
#pragma once

#include <filesystem>
#include <string>

#include "report/data.h"

namespace autosp::cli {

std::string to_json(const ReportData& report);
// Of a comparison: both reports, "first" and "second".
std::string to_json(const ReportData& first, const ReportData& second);

// Throws Error when the file cannot be read, is no report, or is one of another format.
ReportData read_report(const std::filesystem::path& path);

}  // namespace autosp::cli
