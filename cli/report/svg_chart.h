// Charts as inline SVG. Colours come from classes, which the page's style sheet defines for light
// and dark; every mark has a title that browsers show when it is pointed at.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace autosp::cli {

using Format = std::function<std::string(double)>;

struct ChartText {
  std::string title;        // what the chart shows, for readers who do not see it
  std::string description;  // what there is to be seen
};

// Bands on top of each other over positions.
struct AreaBand {
  std::string name;
  std::string style;  // class
  std::vector<double> values;
};
struct AreaLine {
  std::string label;
  double value = 0;
};
struct AreaChart {
  ChartText text;
  std::string x_label;
  std::vector<double> x;  // ascending
  double x_end = 0;
  double y_end = 0;  // 0: as high as needed
  std::vector<AreaBand> bands;
  std::vector<AreaLine> horizontal;
  std::vector<AreaLine> vertical;
};
// Values are bytes.
std::string area_chart(const AreaChart& chart);

// Horizontal bars of several parts.
struct BarPart {
  std::string name;
  std::string style;
  double value = 0;
};
struct Bar {
  std::string label;
  std::vector<BarPart> parts;
};
struct BarChart {
  ChartText text;
  double end = 0;  // 0: as long as needed
  std::vector<Bar> bars;
};
// Values are bytes.
std::string bar_chart(const BarChart& chart);

// A pair of rows per rank: what it computes, and below it what it communicates.
struct TimelineMark {
  size_t row = 0;
  bool below = false;
  std::string style;
  double start = 0;
  double duration = 0;
  bool underlined = false;
  std::string title;
};
struct TimelineChart {
  ChartText text;
  std::vector<std::string> rows;
  double seconds = 0;
  std::vector<TimelineMark> marks;
};
std::string timeline_chart(const TimelineChart& chart);

// Achieved rates over operations per byte, both on logarithmic scales.
struct RooflinePoint {
  std::string name;
  std::string style;
  double intensity = 0;  // operations per byte
  double rate = 0;       // operations per second
  double weight = 0;     // of its time in all, 0 to 1
  std::string title;
};
struct RooflineRoof {
  std::string name;
  double rate = 0;
};
struct RooflineChart {
  ChartText text;
  double bandwidth = 0;  // bytes per second
  std::vector<RooflineRoof> roofs;
  std::vector<RooflinePoint> points;
};
std::string roofline_chart(const RooflineChart& chart);

// Boxes in a row, joined by arrows. A box shows a tensor, divided among ranks: along x its
// sequence, along y its features or heads.
struct DiagramCell {
  size_t row = 0;
  size_t column = 0;
  std::string label;
  std::string style;
};
struct DiagramBox {
  std::string title;
  std::vector<std::string> lines;
  std::string x_label;
  std::string y_label;
  size_t rows = 1;
  size_t columns = 1;
  std::vector<DiagramCell> cells;
};
struct DiagramArrow {
  std::vector<std::string> lines;
  bool exchange = false;  // ranks communicate here
};
struct DiagramRow {
  std::string title;
  std::vector<DiagramBox> boxes;
  std::vector<DiagramArrow> arrows;  // one between each two boxes
};
std::string diagram(const ChartText& text, const std::vector<DiagramRow>& rows);

}  // namespace autosp::cli
