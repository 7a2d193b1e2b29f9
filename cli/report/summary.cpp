#include "report/summary.h"

#include <fmt/ranges.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "figures.h"

namespace autosp::cli {

std::string bytes_text(int64_t count) { return format_bytes(static_cast<double>(count)); }

std::string mesh_text(const ReportData& report) {
  std::vector<std::string> axes;
  for (const ReportAxis& axis : report.mesh) {
    axes.push_back(fmt::format("{} {}", axis.name, axis.size));
  }
  return fmt::format("{}", fmt::join(axes, " x "));
}

std::string ranks_text(const ReportData& report) {
  const size_t ranks = report.ranks.size();
  return fmt::format("{} rank{}", ranks, ranks == 1 ? "" : "s");
}

std::string loss_text(const ReportData& report) {
  const auto& loss = report.ranks.front().loss;
  if (!loss) return "none";
  return std::isfinite(*loss) ? fmt::format("{:.7g}", *loss) : "not finite";
}

std::string difference_text(const ReportData& report) {
  return report.validation ? format_error(report.validation->largest_relative_error)
                           : "not compared";
}

std::string unsharded_text(const ReportData& report) {
  return report.unsharded ? bytes_text(report.unsharded->peak_bytes) : "not known";
}

}  // namespace autosp::cli
