// The sections about layers and about differences from the whole model.
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

std::string traffic(const ReportCollectives& row) {
  return fmt::format("{}: {} {}, {}", row.phase, row.count, row.kind, bytes_text(row.bytes));
}

DiagramArrow arrow_of(const std::vector<ReportCollectives>& collectives) {
  DiagramArrow arrow;
  for (const ReportCollectives& row : collectives) arrow.lines.push_back(traffic(row));
  arrow.exchange = !arrow.lines.empty();
  if (!arrow.exchange) arrow.lines.emplace_back("nothing moves");
  return arrow;
}

// A box whose tensor is one piece.
DiagramBox whole_box(const std::string& title, const std::string& line, const std::string& y) {
  DiagramBox box{.title = title, .lines = {line}, .x_label = "sequence", .y_label = y};
  box.cells.push_back({0, 0, "all", "fill-hollow"});
  return box;
}

std::string extents_text(const std::vector<int64_t>& extents) {
  const auto [least, greatest] = std::ranges::minmax(extents);
  return least == greatest ? fmt::format("{}", least) : fmt::format("{} to {}", least, greatest);
}

template <typename Extent>
std::string range_of(const ReportLayers& layers, Extent extent) {
  std::vector<int64_t> extents;
  for (const ReportAttentionRank& rank : layers.ranks) extents.push_back(rank.*extent);
  return extents_text(extents);
}

// The ranks that share one sequence.
std::vector<ReportAttentionRank> first_replica(const ReportLayers& layers) {
  std::vector<ReportAttentionRank> ranks;
  for (const ReportAttentionRank& rank : layers.ranks) {
    if (rank.replica == 0) ranks.push_back(rank);
  }
  return ranks;
}

DiagramBox token_box(const ReportLayers& layers, const std::string& title) {
  const auto ranks = first_replica(layers);
  DiagramBox box{
      .title = title,
      .lines = {fmt::format("{} of {} positions", range_of(layers, &ReportAttentionRank::tokens),
                            layers.positions),
                "all features"},
      .x_label = "sequence",
      .y_label = "features",
      .columns = ranks.size()};
  for (size_t k = 0; k < ranks.size(); ++k) {
    box.cells.push_back({0, k, fmt::format("r{}", ranks[k].rank), part_style(k)});
  }
  return box;
}

DiagramBox attention_box(const ReportLayers& layers) {
  const auto ranks = first_replica(layers);
  DiagramBox box{
      .title = "attention",
      .lines = {fmt::format("{} of {} heads", range_of(layers, &ReportAttentionRank::heads),
                            layers.heads),
                fmt::format("{} of {} queries", range_of(layers, &ReportAttentionRank::queries),
                            layers.positions),
                fmt::format("all {} keys", range_of(layers, &ReportAttentionRank::keys))},
      .x_label = "queries",
      .y_label = "heads"};
  for (size_t k = 0; k < ranks.size(); ++k) {
    const auto row = static_cast<size_t>(std::max<int64_t>(0, ranks[k].row));
    const auto column = static_cast<size_t>(std::max<int64_t>(0, ranks[k].column));
    box.rows = std::max(box.rows, row + 1);
    box.columns = std::max(box.columns, column + 1);
    box.cells.push_back({row, column, fmt::format("r{}", ranks[k].rank), part_style(k)});
  }
  return box;
}

std::string layer_table(const ReportLayers& layers) {
  std::vector<Row> rows;
  for (const ReportAttentionRank& rank : layers.ranks) {
    rows.push_back({format_count(rank.rank), format_count(rank.tokens), format_count(rank.heads),
                    format_count(rank.kv_heads), format_count(rank.queries),
                    format_count(rank.keys)});
  }
  return table("What each rank has of a layer",
               {{"rank", kNumber},
                {"positions", kNumber, "outside attention"},
                {"heads", kNumber},
                {"KV heads", kNumber},
                {"queries", kNumber},
                {"keys", kNumber}},
               rows);
}

}  // namespace

Section layer_section(const ReportData& report) {
  const ReportLayers& layers = report.layers;
  if (layers.count == 0) {
    return {"Layers", paragraph("No attention operator is in the rank graphs: the model has "
                                "none that was recognised, or it was sharded with "
                                "--attention unfused.")};
  }
  const std::string positions = fmt::format("{} positions", layers.positions);
  DiagramRow before{
      .title = "Before: one layer of the model",
      .boxes = {whole_box("per token", positions, "features"),
                whole_box("attention", fmt::format("{} heads, {}", layers.heads, positions),
                          "heads"),
                whole_box("per token", positions, "features")},
      .arrows = {{{"queries, keys, values"}}, {{"attention output"}}}};
  DiagramRow after{.title = fmt::format("After: the same layer on {}", ranks_text(report)),
                   .boxes = {token_box(layers, "per token"), attention_box(layers),
                             token_box(layers, "per token")},
                   .arrows = {arrow_of(layers.before), arrow_of(layers.after)}};
  const bool replicas = first_replica(layers).size() < layers.ranks.size();
  return {
      "A layer before and after",
      figure(diagram({"A layer before and after sharding",
                      "Tensors outside attention are divided along the sequence, inside attention "
                      "by heads or queries; collectives stand between"},
                     {before, after}),
             fmt::format("Outside attention (projections, norms, MLP) a rank has a part of the "
                         "sequence, inside it the part of heads and queries that is shown. Red "
                         "arrows are collectives, of the forward pass and, the other way, of the "
                         "backward pass; bytes are what a rank sends. {}{}",
                         layers.count == 1 ? "The model has one such layer."
                         : layers.alike
                             ? fmt::format("All {} layers are alike.", layers.count)
                             : fmt::format("This is the first of {} layers, which differ in their "
                                           "collectives.",
                                           layers.count),
                         replicas ? " The ranks of one part of the batch are shown." : "")) +
          details("Table: ranks of a layer", layer_table(layers))};
}

namespace {

std::vector<Row> output_rows(const std::vector<ReportOutput>& outputs, size_t begin, size_t end) {
  std::vector<Row> rows;
  for (size_t k = begin; k < std::min(end, outputs.size()); ++k) {
    const ReportOutput& output = outputs[k];
    rows.push_back({output.name, output.role, format_error(output.relative_error),
                    format_error(output.absolute_error), format_error(output.tolerance),
                    format_count(output.rank), output.verdict});
  }
  return rows;
}

}  // namespace

Section validation_section(const ReportData& report) {
  if (!report.validation) {
    return {"Differences from the whole model",
            paragraph("Not compared: the whole model was not given (--model).")};
  }
  constexpr size_t kShown = 12;
  const ReportValidation& validation = *report.validation;
  const std::vector<Column> columns = {{"output", kName},
                                       {"role"},
                                       {"relative", kNumber, "to the largest entry of the tensor"},
                                       {"absolute", kNumber},
                                       {"tolerance", kNumber},
                                       {"rank", kNumber, "that is furthest off"},
                                       {"verdict"}};
  std::string content = text_element(
      "p", {{"class", validation.equal ? "good" : "bad"}},
      validation.equal
          ? fmt::format("Equal: {} outputs on every rank are within their tolerances.",
                        validation.outputs.size())
          : "Not equal: some outputs differ by more than their tolerances, or are not finite.");
  content += table("The loss, and the largest errors", columns,
                   output_rows(validation.outputs, 0, kShown));
  if (validation.outputs.size() > kShown) {
    content += details("Table: the other outputs",
                       table("By falling error", columns,
                             output_rows(validation.outputs, kShown, validation.outputs.size())));
  }
  return {"Differences from the whole model", content};
}

}  // namespace autosp::cli
