// What several parts of a page ask of a report.
#pragma once

#include <algorithm>
#include <string>

#include "report/data.h"

namespace autosp::cli {

// Over the ranks, of one of their figures.
template <typename Figure>
double mean(const ReportData& report, Figure figure) {
  double sum = 0;
  for (const ReportRank& rank : report.ranks) sum += static_cast<double>(rank.*figure);
  return report.ranks.empty() ? 0 : sum / static_cast<double>(report.ranks.size());
}

template <typename Figure>
int64_t most(const ReportData& report, Figure figure) {
  int64_t result = 0;
  for (const ReportRank& rank : report.ranks) result = std::max(result, rank.*figure);
  return result;
}

std::string bytes_text(int64_t count);
// "u 4 x r 2".
std::string mesh_text(const ReportData& report);
// "1 rank", "4 ranks".
std::string ranks_text(const ReportData& report);
std::string loss_text(const ReportData& report);
std::string difference_text(const ReportData& report);  // from the whole model
std::string unsharded_text(const ReportData& report);   // its memory

}  // namespace autosp::cli
