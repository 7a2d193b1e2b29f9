// The sections about memory.
#include <algorithm>

#include "base/error.h"
#include "figures.h"
#include "report/markup.h"
#include "report/sections.h"
#include "report/style.h"
#include "report/summary.h"
#include "report/svg_chart.h"

namespace autosp::cli {

namespace {

Bar memory_bar(const std::string& label, const std::vector<ReportBucket>& buckets) {
  Bar bar{.label = label};
  for (const ReportBucket& bucket : buckets) {
    bar.parts.push_back(
        {bucket.name, bucket_style(bucket.name), static_cast<double>(bucket.bytes)});
  }
  return bar;
}

std::vector<Swatch> bucket_legend(const std::vector<ReportBucket>& buckets) {
  std::vector<Swatch> swatches;
  for (const ReportBucket& bucket : buckets) {
    swatches.push_back({bucket.name, bucket_style(bucket.name)});
  }
  return swatches;
}

std::string rank_table(const ReportData& report) {
  std::vector<Row> rows;
  for (const ReportRank& rank : report.ranks) {
    rows.push_back({format_count(rank.rank), bytes_text(rank.peak_bytes),
                    bytes_text(rank.planned_peak_bytes), bytes_text(rank.measured_peak_bytes),
                    format_count(rank.collectives), bytes_text(rank.bytes_sent),
                    format_seconds(rank.step_seconds), format_seconds(rank.compute_seconds),
                    format_seconds(rank.exposed_seconds)});
  }
  return table(
      "Each rank, in this run",
      {{"rank", kNumber},
       {"peak", kNumber, "predicted: parameters, inputs and the arena"},
       {"arena planned", kNumber, "what the run set aside for intermediate values"},
       {"arena measured", kNumber, "what of it came into use, with the buffers of messages"},
       {"collectives", kNumber},
       {"sent", kNumber, "to other ranks"},
       {"step", kNumber},
       {"computing", kNumber},
       {"exposed", kNumber, "in collectives while the rank computed nothing"}},
      rows);
}

std::string bucket_table(const ReportData& report) {
  std::vector<Column> columns = {{"bytes at the peak"}};
  std::vector<Row> rows;
  for (const ReportBucket& bucket : report.ranks.front().buckets) rows.push_back({bucket.name});
  rows.push_back({"total"});
  const auto add = [&](const std::string& name, const std::vector<ReportBucket>& buckets) {
    columns.push_back({name, kNumber});
    int64_t sum = 0;
    for (Row& row : rows) {
      const auto found = std::ranges::find(buckets, row.front(), &ReportBucket::name);
      const int64_t size = found == buckets.end() ? sum : found->bytes;
      row.push_back(format_count(size));
      sum += size;
    }
  };
  for (const ReportRank& rank : report.ranks) add(fmt::format("rank {}", rank.rank), rank.buckets);
  if (report.unsharded) add("unsharded", report.unsharded->buckets);
  return table("Bytes by bucket where a rank's memory peaks", columns, rows, true);
}

}  // namespace

Section peak_section(const ReportData& report, const Scales& scales) {
  constexpr size_t kMostBars = 32;
  BarChart chart{
      .text = {"Peak memory by bucket", "One bar for each rank, one for the whole model"},
      .end = scales.memory};
  for (const ReportRank& rank : report.ranks) {
    if (chart.bars.size() == kMostBars) break;
    chart.bars.push_back(memory_bar(fmt::format("rank {}", rank.rank), rank.buckets));
  }
  if (report.unsharded) chart.bars.push_back(memory_bar("unsharded", report.unsharded->buckets));
  const std::string whole =
      report.unsharded
          ? fmt::format("The last bar is the whole model on one rank (recompute {}).",
                        report.unsharded->recompute)
          : fmt::format("Memory of the whole model is not known: {}.", report.unsharded_reason);
  return {
      "Ranks and their memory",
      rank_table(report) + legend(bucket_legend(report.ranks.front().buckets)) +
          figure(bar_chart(chart),
                 fmt::format("Predicted memory where it peaks{}. Gaps are what of the arena is not "
                             "live there. {}",
                             report.ranks.size() > kMostBars
                                 ? fmt::format(", of the first {} ranks", kMostBars)
                                 : "",
                             whole)) +
          details("Table: bytes by bucket", bucket_table(report))};
}

namespace {

std::vector<double> as_doubles(const std::vector<int64_t>& values) {
  return {values.begin(), values.end()};
}

std::string memory_table(const ReportMemory& memory) {
  std::vector<Column> columns = {{"node", kNumber}};
  for (const std::string& bucket : memory.buckets) columns.push_back({bucket, kNumber});
  std::vector<Row> rows;
  for (size_t k = 0; k < memory.at.size(); ++k) {
    Row row = {format_count(memory.at[k])};
    for (const auto& values : memory.bytes) row.push_back(format_count(values[k]));
    rows.push_back(std::move(row));
  }
  return table("Live bytes by bucket while a node runs", columns, rows);
}

}  // namespace

Section memory_section(const ReportData& report, const Scales& scales) {
  const ReportMemory& memory = report.memory;
  AreaChart chart{.text = {"Memory over the step, by bucket",
                           "Bands of live bytes while the nodes of a rank run"},
                  .x_label = "node, in order of execution",
                  .x = as_doubles(memory.at),
                  .x_end = static_cast<double>(memory.nodes + 1),
                  .y_end = scales.memory,
                  .horizontal = {{"set aside", static_cast<double>(memory.planned_bytes)}}};
  std::vector<Swatch> swatches;
  for (size_t k = 0; k < memory.buckets.size(); ++k) {
    const std::string style = bucket_style(memory.buckets[k]);
    chart.bands.push_back({memory.buckets[k], style, as_doubles(memory.bytes[k])});
    swatches.push_back({memory.buckets[k], style});
  }
  if (memory.backward_from < memory.nodes) {
    chart.vertical.push_back({"backward pass", static_cast<double>(memory.backward_from)});
  }
  return {
      "Memory over the step",
      legend(swatches) +
          figure(area_chart(chart),
                 fmt::format("What is live while each of the {} nodes of rank {} runs, the rank "
                             "that takes most. Parameters and inputs lie outside the arena; the "
                             "broken line is what is set aside in all.{}",
                             format_count(memory.nodes), memory.rank,
                             memory.stride > 1
                                 ? fmt::format(" Each {} nodes are told by the one at which most "
                                               "is live.",
                                               memory.stride)
                                 : "")) +
          details("Table: live bytes by node", memory_table(memory))};
}

}  // namespace autosp::cli
