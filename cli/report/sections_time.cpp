// The sections about time: collectives, time line, rates.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "figures.h"
#include "report/markup.h"
#include "report/sections.h"
#include "report/style.h"
#include "report/summary.h"
#include "report/svg_chart.h"

namespace autosp::cli {

namespace {

std::string layer_text(const ReportCollectives& row) {
  if (row.layer > 0) return fmt::format("attention {}", row.layer);
  return row.purpose == "reshard" ? "elsewhere" : row.purpose;
}

std::vector<Row> collective_rows(const std::vector<ReportCollectives>& collectives, bool by_layer) {
  std::vector<std::pair<Row, ReportCollectives>> sums;
  ReportCollectives all;
  for (const ReportCollectives& row : collectives) {
    const Row key = by_layer ? Row{layer_text(row), row.phase, row.kind}
                             : Row{row.phase, row.kind, row.purpose};
    auto sum = std::ranges::find(sums, key, &std::pair<Row, ReportCollectives>::first);
    if (sum == sums.end()) sum = sums.insert(sums.end(), {key, {}});
    for (ReportCollectives* to : {&sum->second, &all}) {
      to->count += row.count;
      to->bytes += row.bytes;
      to->seconds += row.seconds;
    }
  }
  std::vector<Row> rows;
  sums.push_back({{"total", "", ""}, all});
  for (auto& [key, sum] : sums) {
    Row row = key;
    row.insert(row.end(),
               {format_count(sum.count), bytes_text(sum.bytes), format_seconds(sum.seconds)});
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

Section collective_section(const ReportData& report) {
  const Column count{"count", kNumber};
  const Column sent{"sent", kNumber, "the most that a rank sends to others"};
  const Column time{"time", kNumber, "on average over the ranks, waiting included"};
  return {"Collectives",
          table("By kind; what one rank takes part in",
                {{"phase"}, {"kind"}, {"purpose"}, count, sent, time},
                collective_rows(report.collectives, false), true) +
              details("Table: by layer", table("By the attention next to them in the graph",
                                               {{"layer"}, {"phase"}, {"kind"}, count, sent, time},
                                               collective_rows(report.collectives, true), true))};
}

namespace {

std::string times_table(const ReportData& report) {
  std::vector<Row> rows;
  for (const ReportRank& rank : report.ranks) {
    const double transfer = rank.communication_seconds - rank.waiting_seconds;
    const double idle =
        std::max(0.0, rank.step_seconds - rank.compute_seconds - rank.exposed_seconds);
    rows.push_back({format_count(rank.rank), format_seconds(rank.step_seconds),
                    format_seconds(rank.compute_seconds), format_seconds(rank.waiting_seconds),
                    format_seconds(transfer), format_seconds(rank.exposed_seconds),
                    format_share(rank.exposed_seconds, rank.step_seconds), format_seconds(idle)});
  }
  return table("Where the time of the step went",
               {{"rank", kNumber},
                {"step", kNumber},
                {"computing", kNumber},
                {"waiting", kNumber, "in a collective that another rank had yet to come to"},
                {"transfer", kNumber, "in a collective after the last rank had come"},
                {"exposed", kNumber, "in collectives while the rank computed nothing"},
                {"of the step", kNumber},
                {"between nodes", kNumber}},
               rows);
}

TimelineMark mark_of(const ReportSegment& segment) {
  constexpr size_t kLongestLabel = 80;  // there may be thousands
  const std::string label = shortened(segment.label, kLongestLabel);
  const bool below = segment.kind == "waiting" || segment.kind == "transfer";
  const std::string nodes =
      segment.nodes == 1 ? label : fmt::format("{} nodes from {}", segment.nodes, label);
  std::string title = fmt::format("rank {}, {}: {}\n{} from {}", segment.rank, segment.kind, nodes,
                                  format_seconds(segment.duration), format_seconds(segment.start));
  const bool exposed = segment.exposed_seconds > 0;
  if (exposed) title += fmt::format("\nexposed: {}", format_seconds(segment.exposed_seconds));
  return {.row = static_cast<size_t>(segment.rank),
          .below = below,
          .style = segment_style(segment.kind),
          .start = segment.start,
          .duration = segment.duration,
          .underlined = exposed,
          .title = title};
}

}  // namespace

Section timeline_section(const ReportData& report, const Scales& scales) {
  TimelineChart chart{.text = {"Time line of every rank",
                               "For each rank a row of computation above a row of communication"},
                      .seconds = std::max(report.timeline.seconds, scales.seconds)};
  for (const ReportRank& rank : report.ranks) {
    chart.rows.push_back(fmt::format("rank {}", rank.rank));
  }
  for (const ReportSegment& segment : report.timeline.segments) {
    chart.marks.push_back(mark_of(segment));
  }
  std::vector<Swatch> swatches;
  for (const char* kind : {"forward", "backward", "recompute", "waiting", "transfer"}) {
    swatches.push_back({kind, segment_style(kind)});
  }
  swatches.push_back({"exposed (line below)", "exposed"});
  return {
      "Time line of the step",
      legend(swatches) +
          figure(timeline_chart(chart),
                 fmt::format("Above, what a rank computes; below, its collectives, first waiting "
                             "for the last member, then moving data. A line below marks exposed "
                             "communication, during which the rank computes nothing.{}",
                             report.timeline.merged
                                 ? " There are too many nodes to show each: in columns of equal "
                                   "width, bars are as wide as what they stand for took."
                                 : "")) +
          details("Table: times by rank", times_table(report))};
}

namespace {

bool communicates(const ReportOperator& op) { return op.family == "collective"; }

std::string operator_title(const ReportOperator& op) {
  return fmt::format("{} x {} ({}): {} in all\n{}, {}", op.count, op.op, op.family,
                     format_seconds(op.seconds), format_rate(op.flops / op.seconds, "FLOP/s"),
                     format_rate(op.bytes / op.seconds, "B/s"));
}

std::string operator_table(const ReportData& report) {
  std::vector<Row> rows;
  double total = 0;
  for (const ReportOperator& op : report.operators) total += op.seconds;
  for (const ReportOperator& op : report.operators) {
    rows.push_back({op.op, op.family, format_count(op.count), format_seconds(op.seconds),
                    format_share(op.seconds, total), format_rate(op.flops / op.seconds, "FLOP/s"),
                    format_rate(op.bytes / op.seconds, "B/s"),
                    format_share(op.attainable_seconds, op.seconds)});
  }
  return table(
      "Operators of all ranks, by time",
      {{"operator", kName},
       {"family"},
       {"nodes", kNumber},
       {"time", kNumber, "of all ranks together"},
       {"share", kNumber},
       {"operations", kNumber, "floating-point operations per second that a rank reached"},
       {"bytes", kNumber, "of operands and results per second; of collectives: sent"},
       {"of attainable", kNumber, "the time by the device's rates over the measured time"}},
      rows);
}

}  // namespace

Section rate_section(const ReportData& report) {
  const ReportDevice& device = report.device;
  RooflineChart chart{
      .text = {"Achieved rates against the roofline",
               "Rates of operators over their operations per byte, under the device's limits"},
      .bandwidth = device.bandwidth,
      .roofs = {{"products", device.product}}};
  const auto uses = [&](const char* family) {
    return std::ranges::any_of(report.operators,
                               [&](const ReportOperator& op) { return op.family == family; });
  };
  if (uses("attention")) chart.roofs.push_back({"attention", device.attention});
  if (uses("attention backward") && device.attention_grad != device.attention) {
    chart.roofs.push_back({"attention backward", device.attention_grad});
  }
  double total = 0;
  for (const ReportOperator& op : report.operators) total += communicates(op) ? 0 : op.seconds;
  std::vector<Swatch> swatches;
  for (const ReportOperator& op : report.operators) {
    if (communicates(op) || !(op.seconds > 0)) continue;
    chart.points.push_back({.name = op.op,
                            .style = family_style(op.family),
                            .intensity = op.flops / op.bytes,
                            .rate = op.flops / op.seconds,
                            .weight = total > 0 ? op.seconds / total : 0,
                            .title = operator_title(op)});
    if (std::ranges::find(swatches, op.family, &Swatch::name) == swatches.end()) {
      swatches.push_back({op.family, family_style(op.family)});
    }
  }
  return {
      "Achieved rates",
      legend(swatches) +
          figure(roofline_chart(chart),
                 fmt::format("Operators by what they reach, all ranks together; the area of a "
                             "point grows with its time. Lines are the rates of '{}', one device "
                             "per rank, by which 'plan' predicts: ranks that share cores cannot "
                             "all reach them, and operands that lie in a cache can exceed the "
                             "rate of memory. What computes nothing is in the table only.",
                             device.name)) +
          details("Table: operators", operator_table(report))};
}

}  // namespace autosp::cli
