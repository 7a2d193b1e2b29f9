#include "report/html.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "figures.h"
#include "report/markup.h"
#include "report/sections.h"
#include "report/summary.h"
#include "report/svg_chart.h"

namespace autosp::cli {

namespace {

std::string tile(const std::string& name, const std::string& value, const std::string& detail) {
  return element("div", {{"class", "tile"}},
                 text_element("dt", {}, name) + text_element("dd", {}, value) +
                     text_element("dd", {{"class", "detail"}}, detail));
}

std::string tiles(const ReportData& report) {
  const double exposed = mean(report, &ReportRank::exposed_seconds);
  std::string result =
      tile("Ranks", format_count(static_cast<int64_t>(report.ranks.size())), mesh_text(report));
  if (report.tokens) {
    result += tile("Tokens", format_count(*report.tokens), "of the whole batch, in a step");
  }
  result += tile("Step", format_seconds(report.step_seconds),
                 fmt::format("the last of {}; loss {}", report.steps, loss_text(report)));
  result += tile("Peak per rank", bytes_text(most(report, &ReportRank::peak_bytes)),
                 fmt::format("unsharded: {}", unsharded_text(report)));
  result += tile("Exposed communication", format_seconds(exposed),
                 fmt::format("{} of the step, on average over ranks",
                             format_share(exposed, report.step_seconds)));
  result += tile("Largest difference", difference_text(report), "from the whole model, relative");
  return element("dl", {{"class", "tiles"}}, result);
}

std::string origin(const ReportData& report) {
  return fmt::format(
      "{}; mesh {}; recompute {}; inputs {}; {} thread{} per rank; autosp-onnx {}", report.folder,
      mesh_text(report), report.recompute.empty() ? "none" : report.recompute,
      report.feed.empty() ? "generated" : "of " + report.feed, report.threads_per_rank,
      report.threads_per_rank == 1 ? "" : "s", report.tool_version);
}

std::string warnings(const ReportData& report) {
  if (report.warnings.empty()) return "";
  std::string items;
  for (const std::string& warning : report.warnings) items += text_element("li", {}, warning);
  return section({"Warnings of the plan", element("ul", {}, items)});
}

std::string footer() {
  return text_element("footer", {},
                      "All figures are of one run on the CPU, ranks as threads of one process. "
                      "Memory by bucket is predicted from shapes.");
}

std::vector<Section> sections(const ReportData& report, const Scales& scales) {
  return {peak_section(report, scales), memory_section(report, scales),
          collective_section(report),   timeline_section(report, scales),
          rate_section(report),         layer_section(report),
          validation_section(report)};
}

std::string ratio(double first, double second) {
  return first > 0 && std::isfinite(second) ? fmt::format("{:.3g}", second / first) : "";
}

struct Names {
  std::string first;
  std::string second;
};

Names names_of(const ReportData& first, const ReportData& second) {
  if (first.folder != second.folder) return {first.folder, second.folder};
  return {first.folder + " (first)", second.folder + " (second)"};
}

// Rows of "what, first, second, second over first".
class ComparisonRows {
 public:
  ComparisonRows(const ReportData& first, const ReportData& second)
      : first_(first), second_(second) {}

  template <typename Text>
  ComparisonRows& words(const std::string& what, Text text) {
    rows_.push_back({what, text(first_), text(second_), ""});
    return *this;
  }
  template <typename Figure>
  ComparisonRows& numbers(const std::string& what, const Format& format, Figure figure) {
    const auto a = static_cast<double>(figure(first_));
    const auto b = static_cast<double>(figure(second_));
    rows_.push_back({what, format(a), format(b), ratio(a, b)});
    return *this;
  }
  std::string table_of(const std::string& caption, const Names& names) const {
    return table(caption,
                 {{"", kName},
                  {names.first, kNumber},
                  {names.second, kNumber},
                  {"ratio", kNumber, "the second over the first"}},
                 rows_);
  }

 private:
  const ReportData& first_;
  const ReportData& second_;
  std::vector<Row> rows_;
};

std::string count_text(double count) { return format_count(std::llround(count)); }

std::string figures_table(const ReportData& first, const ReportData& second, const Names& names) {
  ComparisonRows rows(first, second);
  rows.words("model", [](const ReportData& r) { return r.model; })
      .words("mesh", mesh_text)
      .words("recompute", [](const ReportData& r) { return r.recompute; })
      .numbers("ranks", count_text, [](const ReportData& r) { return r.ranks.size(); })
      .numbers("tokens", count_text, [](const ReportData& r) { return r.tokens.value_or(0); })
      .words("loss", loss_text)
      .numbers("step", format_seconds, [](const ReportData& r) { return r.step_seconds; })
      .numbers("computing", format_seconds,
               [](const ReportData& r) { return mean(r, &ReportRank::compute_seconds); })
      .numbers("exposed communication", format_seconds,
               [](const ReportData& r) { return mean(r, &ReportRank::exposed_seconds); })
      .numbers("peak per rank", format_bytes,
               [](const ReportData& r) { return most(r, &ReportRank::peak_bytes); })
      .numbers("arena planned", format_bytes,
               [](const ReportData& r) { return most(r, &ReportRank::planned_peak_bytes); })
      .numbers("arena measured", format_bytes,
               [](const ReportData& r) { return most(r, &ReportRank::measured_peak_bytes); })
      .numbers("collectives", count_text,
               [](const ReportData& r) { return most(r, &ReportRank::collectives); })
      .numbers("sent by a rank", format_bytes,
               [](const ReportData& r) { return most(r, &ReportRank::bytes_sent); })
      .words("largest difference", difference_text);
  return rows.table_of("Figures of both; times are averages over ranks, sizes the largest of any",
                       names);
}

// Names of both sides, those of the first in its order, then what only the second has.
template <typename Item, typename Key>
std::vector<std::string> union_of(const std::vector<Item>& first, const std::vector<Item>& second,
                                  Key key) {
  std::vector<std::string> names;
  for (const auto* side : {&first, &second}) {
    for (const Item& item : *side) {
      if (std::ranges::find(names, key(item)) == names.end()) names.push_back(key(item));
    }
  }
  return names;
}

std::string operator_comparison(const ReportData& first, const ReportData& second,
                                const Names& names) {
  ComparisonRows rows(first, second);
  const auto ops =
      union_of(first.operators, second.operators, [](const ReportOperator& op) { return op.op; });
  for (const std::string& name : ops) {
    rows.numbers(name, format_seconds, [&](const ReportData& report) {
      const auto found = std::ranges::find(report.operators, name, &ReportOperator::op);
      const double ranks = static_cast<double>(report.ranks.size());
      return found == report.operators.end() ? 0 : found->seconds / ranks;
    });
  }
  return details("Table: time by operator",
                 rows.table_of("Time by operator, on average over ranks", names));
}

std::string collective_comparison(const ReportData& first, const ReportData& second,
                                  const Names& names) {
  const auto key = [](const ReportCollectives& row) {
    return fmt::format("{} {} ({})", row.phase, row.kind, row.purpose);
  };
  ComparisonRows rows(first, second);
  for (const std::string& name : union_of(first.collectives, second.collectives, key)) {
    rows.numbers(name, format_bytes, [&](const ReportData& report) {
      int64_t sum = 0;
      for (const ReportCollectives& row : report.collectives)
        sum += key(row) == name ? row.bytes : 0;
      return sum;
    });
  }
  return details("Table: bytes by collective", rows.table_of("Bytes that a rank sends", names));
}

double memory_scale(const ReportData& report) {
  int64_t size = most(report, &ReportRank::peak_bytes);
  if (report.unsharded) size = std::max(size, report.unsharded->peak_bytes);
  return static_cast<double>(size);
}

// Each section of the first report, and the same of the second, at one scale.
std::string both(const ReportData& first, const ReportData& second, const Names& names) {
  const Scales scales{.memory = std::max(memory_scale(first), memory_scale(second)),
                      .seconds = std::max(first.timeline.seconds, second.timeline.seconds)};
  const std::vector<Section> left = sections(first, scales);
  const std::vector<Section> right = sections(second, scales);
  std::string result;
  for (size_t k = 0; k < left.size(); ++k) {
    result += section({left[k].title, text_element("h3", {}, names.first) + left[k].content +
                                          text_element("h3", {}, names.second) + right[k].content});
  }
  return result;
}

}  // namespace

std::string headline(const ReportData& report) {
  const double exposed = mean(report, &ReportRank::exposed_seconds);
  std::string text = ranks_text(report);
  text += report.ranks.size() == 1 ? " runs" : " run";
  text += " one training step";
  if (report.tokens) text += fmt::format(" on {} tokens", format_count(*report.tokens));
  text += fmt::format(" in {}", format_seconds(report.step_seconds));
  if (report.validation) {
    text += fmt::format("; {} (largest relative difference {})",
                        report.validation->equal
                            ? "loss and every gradient are those of the whole model"
                            : "some results are not those of the whole model",
                        difference_text(report));
  }
  text += fmt::format("; memory peaks at {} per rank",
                      bytes_text(most(report, &ReportRank::peak_bytes)));
  if (report.unsharded) {
    text += fmt::format(", where the unsharded step is predicted to take {}",
                        bytes_text(report.unsharded->peak_bytes));
  }
  text += fmt::format(
      "; {} of the step ({} per rank, of which {} waiting for other ranks) is "
      "exposed communication.",
      format_share(exposed, report.step_seconds), format_seconds(exposed),
      format_seconds(mean(report, &ReportRank::waiting_seconds)));
  return text;
}

std::string report_page(const ReportData& report) {
  const std::string title = fmt::format("{} over {}", report.model, ranks_text(report));
  std::string content =
      text_element("h1", {}, title) + text_element("p", {{"class", "origin"}}, origin(report)) +
      text_element("p", {{"class", "headline"}}, headline(report)) + tiles(report);
  for (const Section& part : sections(report, {})) content += section(part);
  return page(title, content + warnings(report) + footer());
}

std::string comparison_page(const ReportData& first, const ReportData& second) {
  const Names names = names_of(first, second);
  const std::string title = fmt::format("{} and {}", names.first, names.second);
  std::string content = text_element("h1", {}, title);
  for (const auto& [name, report] : {std::pair{names.first, &first}, {names.second, &second}}) {
    content += text_element("h3", {}, name) +
               text_element("p", {{"class", "origin"}}, origin(*report)) +
               text_element("p", {}, headline(*report));
  }
  content += section({"Side by side", figures_table(first, second, names) +
                                          collective_comparison(first, second, names) +
                                          operator_comparison(first, second, names)});
  content += both(first, second, names);
  return page(title, content + footer());
}

}  // namespace autosp::cli
