#include "report/svg_chart.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "figures.h"
#include "report/markup.h"

namespace autosp::cli {

namespace {

constexpr double kWidth = 960;   // of every chart, in units that the page scales
constexpr double kLetter = 6.2;  // width of a character of the labels, about
constexpr size_t kTicks = 6;

std::string number(double value) { return fmt::format("{:.2f}", std::isfinite(value) ? value : 0); }

std::string text_at(double x, double y, const std::string& style, std::string_view text) {
  return text_element("text", {{"x", number(x)}, {"y", number(y)}, {"class", style}}, text);
}

std::string line(double x1, double y1, double x2, double y2, const std::string& style) {
  return empty_element("line", {{"x1", number(x1)},
                                {"y1", number(y1)},
                                {"x2", number(x2)},
                                {"y2", number(y2)},
                                {"class", style}});
}

std::string titled_rectangle(double x, double y, double width, double height,
                             const std::string& style, std::string_view title) {
  return element("rect",
                 {{"x", number(x)},
                  {"y", number(y)},
                  {"width", number(width)},
                  {"height", number(height)},
                  {"class", style}},
                 title.empty() ? "" : text_element("title", {}, title));
}

// The whole picture, with what screen readers say of it.
std::string picture(const ChartText& text, double height, const std::string& content) {
  return element("svg",
                 {{"xmlns", "http://www.w3.org/2000/svg"},
                  {"viewBox", fmt::format("0 0 {} {}", kWidth, number(height))},
                  {"role", "img"},
                  {"aria-label", text.title + ". " + text.description}},
                 content);
}

// Round numbers from 0 to `end`: 1, 2 or 5 times a power of ten, or powers of two for bytes.
std::vector<double> ticks(double end, bool binary) {
  if (!(end > 0) || !std::isfinite(end)) return {0};
  double step = 1;
  const double wanted = end / static_cast<double>(kTicks - 1);
  if (binary) {
    step = std::exp2(std::ceil(std::log2(wanted)));
  } else {
    const double power = std::pow(10, std::floor(std::log10(wanted)));
    for (double factor : {1.0, 2.0, 5.0, 10.0}) {
      step = factor * power;
      if (step >= wanted) break;
    }
  }
  std::vector<double> result;
  for (size_t k = 0; static_cast<double>(k) * step <= end * 1.0001 && k < 100; ++k) {
    result.push_back(static_cast<double>(k) * step);
  }
  return result;
}

// A plot's area, and where values lie in it.
struct Frame {
  double left = 0;
  double top = 0;
  double width = 0;
  double height = 0;
  double x_end = 1;
  double y_end = 1;

  double x(double value) const { return left + width * value / x_end; }
  double y(double value) const { return top + height * (1 - value / y_end); }
  double right() const { return left + width; }
  double bottom() const { return top + height; }
};

std::string byte_axis(const Frame& frame) {
  std::string result;
  for (double tick : ticks(frame.y_end, true)) {
    result += line(frame.left, frame.y(tick), frame.right(), frame.y(tick), "grid");
    result += text_at(frame.left - 6, frame.y(tick) + 4, "label end", format_bytes(tick));
  }
  return result;
}

double highest(const std::vector<AreaBand>& bands, size_t points) {
  double most = 0;
  for (size_t k = 0; k < points; ++k) {
    double sum = 0;
    for (const AreaBand& band : bands) sum += band.values[k];
    most = std::max(most, sum);
  }
  return most;
}

// The outline of a band: steps, since memory does not change while a node runs.
std::string band_path(const AreaChart& chart, const Frame& frame, const std::vector<double>& from,
                      const std::vector<double>& to) {
  std::string forward = "M";
  std::string back;
  for (size_t k = 0; k < chart.x.size(); ++k) {
    const double end = k + 1 < chart.x.size() ? chart.x[k + 1] : chart.x_end;
    const double x1 = frame.x(chart.x[k]);
    const double x2 = frame.x(end);
    const double high = frame.y(to[k]);
    const double low = frame.y(from[k]);
    forward += fmt::format("{:.1f} {:.1f} {:.1f} {:.1f} ", x1, high, x2, high);
    back.insert(0, fmt::format("{:.1f} {:.1f} {:.1f} {:.1f} ", x2, low, x1, low));
  }
  return forward + back + "Z";
}

std::string bands(const AreaChart& chart, const Frame& frame) {
  std::string result;
  std::vector<double> from(chart.x.size(), 0);
  for (const AreaBand& band : chart.bands) {
    std::vector<double> to = from;
    double most = 0;
    for (size_t k = 0; k < to.size(); ++k) {
      to[k] += band.values[k];
      most = std::max(most, band.values[k]);
    }
    if (most > 0) {
      result += element(
          "path", {{"d", band_path(chart, frame, from, to)}, {"class", band.style}},
          text_element("title", {}, fmt::format("{}: at most {}", band.name, format_bytes(most))));
    }
    from = std::move(to);
  }
  return result;
}

// Invisible columns that tell what a position holds.
std::string area_hints(const AreaChart& chart, const Frame& frame) {
  std::string result;
  for (size_t k = 0; k < chart.x.size(); ++k) {
    const double end = k + 1 < chart.x.size() ? chart.x[k + 1] : chart.x_end;
    std::string title = fmt::format("{} {}", chart.x_label, chart.x[k]);
    double sum = 0;
    for (const AreaBand& band : chart.bands) {
      sum += band.values[k];
      if (band.values[k] > 0)
        title += fmt::format("\n{}: {}", band.name, format_bytes(band.values[k]));
    }
    title += fmt::format("\ntogether: {}", format_bytes(sum));
    result += titled_rectangle(frame.x(chart.x[k]), frame.top, frame.x(end) - frame.x(chart.x[k]),
                               frame.height, "hint", title);
  }
  return result;
}

}  // namespace

std::string area_chart(const AreaChart& chart) {
  constexpr double kHeight = 320;
  double end = std::max(chart.y_end, highest(chart.bands, chart.x.size()));
  for (const AreaLine& mark : chart.horizontal) end = std::max(end, mark.value);
  const Frame frame{.left = 78,
                    .top = 22,
                    .width = kWidth - 90,
                    .height = kHeight - 66,
                    .x_end = std::max(chart.x_end, 1.0),
                    .y_end = std::max(end * 1.04, 1.0)};
  std::string content = byte_axis(frame) + bands(chart, frame);
  for (const AreaLine& mark : chart.horizontal) {
    content += line(frame.left, frame.y(mark.value), frame.right(), frame.y(mark.value), "limit");
    content += text_at(frame.left + 6, frame.y(mark.value) - 5, "label note",
                       fmt::format("{}: {}", mark.label, format_bytes(mark.value)));
  }
  for (const AreaLine& mark : chart.vertical) {
    const bool late = mark.value > 0.7 * frame.x_end;
    content +=
        line(frame.x(mark.value), frame.top - 8, frame.x(mark.value), frame.bottom(), "limit");
    content += text_at(frame.x(mark.value) + (late ? -5 : 5), frame.top - 8,
                       late ? "label note end" : "label note", mark.label);
  }
  content += line(frame.left, frame.bottom(), frame.right(), frame.bottom(), "axis");
  for (double tick : ticks(frame.x_end, false)) {
    content += text_at(frame.x(tick), frame.bottom() + 16, "label middle",
                       format_count(static_cast<int64_t>(tick)));
  }
  content += text_at(frame.left + frame.width / 2, kHeight - 6, "label middle", chart.x_label);
  content += area_hints(chart, frame);
  return picture(chart.text, kHeight, content);
}

std::string bar_chart(const BarChart& chart) {
  constexpr double kRow = 26;
  double end = chart.end;
  size_t longest = 9;  // so that charts of much the same labels begin alike
  for (const Bar& bar : chart.bars) {
    double sum = 0;
    for (const BarPart& part : bar.parts) sum += part.value;
    end = std::max(end, sum);
    longest = std::max(longest, bar.label.size());
  }
  const double left = 16 + kLetter * static_cast<double>(longest);
  const double height = kRow * static_cast<double>(chart.bars.size()) + 26;
  const double width = kWidth - left - 90;
  const double scale = end > 0 ? width / end : 0;
  std::string content;
  for (double tick : ticks(end, true)) {
    content += line(left + tick * scale, 0, left + tick * scale, height - 20, "grid");
    content += text_at(left + tick * scale, height - 5, "label middle", format_bytes(tick));
  }
  for (size_t k = 0; k < chart.bars.size(); ++k) {
    const Bar& bar = chart.bars[k];
    const double y = 4 + kRow * static_cast<double>(k);
    content += text_at(left - 8, y + 14, "label end", bar.label);
    double sum = 0;
    for (const BarPart& part : bar.parts) {
      if (part.value > 0) {
        content += titled_rectangle(
            left + sum * scale, y, part.value * scale, kRow - 7, part.style,
            fmt::format("{}, {}: {}", bar.label, part.name, format_bytes(part.value)));
      }
      sum += part.value;
    }
    content += text_at(left + sum * scale + 6, y + 14, "label strong", format_bytes(sum));
  }
  return picture(chart.text, height, content);
}

std::string timeline_chart(const TimelineChart& chart) {
  const bool tight = chart.rows.size() > 12;
  const double upper = tight ? 10 : 22;
  const double lower = tight ? 6 : 12;
  const double pitch = upper + lower + (tight ? 6 : 12);
  size_t longest = 0;
  for (const std::string& row : chart.rows) longest = std::max(longest, row.size());
  Frame frame{.left = 16 + kLetter * static_cast<double>(longest),
              .top = 4,
              .height = pitch * static_cast<double>(chart.rows.size()),
              .x_end = chart.seconds > 0 ? chart.seconds : 1};
  frame.width = kWidth - frame.left - 24;
  std::string content;
  for (double tick : ticks(frame.x_end * 1e6, false)) {
    const double x = frame.x(tick * 1e-6);
    content += line(x, frame.top, x, frame.bottom(), "grid");
    content += text_at(x, frame.bottom() + 16, "label middle", format_seconds(tick * 1e-6));
  }
  for (size_t k = 0; k < chart.rows.size(); ++k) {
    const double y = frame.top + pitch * static_cast<double>(k);
    content += text_at(frame.left - 8, y + upper, "label end", chart.rows[k]);
    content += line(frame.left, y + upper, frame.right(), y + upper, "axis");
  }
  constexpr double kThinnest = 0.3;
  for (const TimelineMark& mark : chart.marks) {
    const double y = frame.top + pitch * static_cast<double>(mark.row) + (mark.below ? upper : 0);
    const double x = frame.x(mark.start);
    const double width = std::max(frame.width * mark.duration / frame.x_end, kThinnest);
    content += titled_rectangle(x, y, width, mark.below ? lower : upper, mark.style, mark.title);
    if (mark.underlined) content += titled_rectangle(x, y + lower + 1, width, 2, "exposed", "");
  }
  return picture(chart.text, frame.bottom() + 24, content);
}

namespace {

// Powers of ten around the values.
struct LogScale {
  double low = 0;  // exponents
  double high = 1;
  double begin = 0;  // coordinates
  double end = 1;

  double at(double value) const {
    const double exponent = std::clamp(std::log10(value), low, high);
    return begin + (end - begin) * (exponent - low) / (high - low);
  }
  std::vector<double> powers() const {
    std::vector<double> result;
    for (double exponent = low; exponent <= high + 0.01; ++exponent) {
      result.push_back(std::pow(10, exponent));
    }
    return result;
  }
};

LogScale log_scale(std::vector<double> values, double begin, double end) {
  std::erase_if(values, [](double value) { return !(value > 0) || !std::isfinite(value); });
  if (values.empty()) return {.begin = begin, .end = end};
  const auto [low, high] = std::ranges::minmax(values);
  LogScale scale{std::floor(std::log10(low)), std::ceil(std::log10(high) + 0.05), begin, end};
  scale.high = std::max(scale.high, scale.low + 1);
  return scale;
}

bool drawable(const RooflinePoint& point) {
  return point.intensity > 0 && point.rate > 0 && std::isfinite(point.intensity) &&
         std::isfinite(point.rate);
}

struct PlacedLabel {
  double x = 0;
  double y = 0;
  double width = 0;
};

// Moves a label down until it meets none that is there already.
PlacedLabel place_label(PlacedLabel label, const std::vector<PlacedLabel>& others) {
  constexpr double kLine = 12;
  for (int tries = 0; tries < 20; ++tries) {
    const bool meets = std::ranges::any_of(others, [&](const PlacedLabel& other) {
      return std::abs(other.y - label.y) < kLine && other.x < label.x + label.width &&
             label.x < other.x + other.width;
    });
    if (!meets) break;
    label.y += kLine;
  }
  return label;
}

// Text that ends at x and stays where it is.
std::string fixed_label(double x, double y, const std::string& text,
                        std::vector<PlacedLabel>& labels) {
  const double width = kLetter * static_cast<double>(text.size());
  labels.push_back({x - width, y, width});
  return text_at(x, y, "label note end", text);
}

std::string roofs(const RooflineChart& chart, const LogScale& x, const LogScale& y,
                  std::vector<PlacedLabel>& labels) {
  std::string result;
  const double last = std::pow(10, x.high);
  double highest_roof = 0;
  for (const RooflineRoof& roof : chart.roofs) highest_roof = std::max(highest_roof, roof.rate);
  double below = -1;
  std::vector<RooflineRoof> sorted = chart.roofs;
  std::ranges::sort(sorted, std::greater(), &RooflineRoof::rate);
  for (const RooflineRoof& roof : sorted) {
    const double from = std::min(std::max(roof.rate / chart.bandwidth, std::pow(10, x.low)), last);
    result += line(x.at(from), y.at(roof.rate), x.at(last), y.at(roof.rate), "roof");
    // Above the highest roof, below the others, and apart from each other.
    const double label =
        below < 0 ? y.at(roof.rate) - 5 : std::max(y.at(roof.rate) + 13, below + 13);
    below = label;
    result +=
        fixed_label(x.at(last) - 2, label,
                    fmt::format("{}: {}", roof.name, format_rate(roof.rate, "FLOP/s")), labels);
  }
  const double ridge = std::min(highest_roof / chart.bandwidth, last);
  const double first = std::max(std::pow(10, x.low), std::pow(10, y.low) / chart.bandwidth);
  result += line(x.at(first), y.at(first * chart.bandwidth), x.at(ridge),
                 y.at(ridge * chart.bandwidth), "roof");
  const double early = std::pow(first, 0.75) * std::pow(ridge, 0.25);
  result += fixed_label(x.at(early) - 8, y.at(early * chart.bandwidth) - 6,
                        fmt::format("memory: {}", format_rate(chart.bandwidth, "B/s")), labels);
  return result;
}

std::string points(const RooflineChart& chart, const LogScale& x, const LogScale& y,
                   std::vector<PlacedLabel> labels) {
  constexpr double kLabelled = 0.025;  // of the time, at least
  std::string marks;
  std::string names;
  for (const RooflinePoint& point : chart.points) {
    if (!drawable(point)) continue;
    const double radius = 3.5 + 9 * std::sqrt(std::clamp(point.weight, 0.0, 1.0));
    marks += element("circle",
                     {{"cx", number(x.at(point.intensity))},
                      {"cy", number(y.at(point.rate))},
                      {"r", number(radius)},
                      {"class", point.style}},
                     text_element("title", {}, point.title));
    if (point.weight < kLabelled) continue;
    const std::string name = shortened(point.name, 24);
    labels.push_back(place_label({x.at(point.intensity) + radius + 3, y.at(point.rate) + 4,
                                  kLetter * static_cast<double>(name.size())},
                                 labels));
    names += text_at(labels.back().x, labels.back().y, "label halo", name);
  }
  return marks + names;
}

}  // namespace

std::string roofline_chart(const RooflineChart& chart) {
  constexpr double kHeight = 400;
  const Frame frame{.left = 92, .top = 14, .width = kWidth - 116, .height = kHeight - 60};
  std::vector<double> rates;
  std::vector<double> intensities;
  for (const RooflinePoint& point : chart.points) {
    if (!drawable(point)) continue;
    rates.push_back(point.rate);
    intensities.push_back(point.intensity);
  }
  for (const RooflineRoof& roof : chart.roofs) {
    rates.push_back(roof.rate);
    intensities.push_back(2 * roof.rate / chart.bandwidth);
  }
  const LogScale x = log_scale(intensities, frame.left, frame.right());
  const LogScale y = log_scale(rates, frame.bottom(), frame.top);
  std::string content;
  for (double power : y.powers()) {
    content += line(frame.left, y.at(power), frame.right(), y.at(power), "grid");
    content += text_at(frame.left - 6, y.at(power) + 4, "label end", format_rate(power, "FLOP/s"));
  }
  for (double power : x.powers()) {
    content += line(x.at(power), frame.top, x.at(power), frame.bottom(), "grid");
    content +=
        text_at(x.at(power), frame.bottom() + 16, "label middle", fmt::format("{:g}", power));
  }
  content += text_at(frame.left + frame.width / 2, kHeight - 6, "label middle",
                     "operations per byte of operands and results");
  std::vector<PlacedLabel> labels;
  content += roofs(chart, x, y, labels);
  content += points(chart, x, y, std::move(labels));
  return picture(chart.text, kHeight, content);
}

namespace {

constexpr double kBox = 84;        // side of a box's tensor
constexpr double kBoxSpace = 128;  // of a box with its labels

double box_left(size_t k, size_t boxes) {
  const double gap = boxes > 1 ? (kWidth - 40 - kBoxSpace * static_cast<double>(boxes)) /
                                     static_cast<double>(boxes - 1)
                               : 0;
  return 28 + static_cast<double>(k) * (kBoxSpace + gap);
}

std::string box(const DiagramBox& box, double x, double y) {
  std::string result = text_at(x + kBox / 2, y - 10, "label middle strong", box.title);
  const double width = kBox / static_cast<double>(box.columns);
  const double height = kBox / static_cast<double>(box.rows);
  for (const DiagramCell& cell : box.cells) {
    const double left = x + width * static_cast<double>(cell.column);
    const double top = y + height * static_cast<double>(cell.row);
    result += titled_rectangle(left, top, width, height, cell.style + " cell",
                               fmt::format("{}: {}", box.title, cell.label));
    const double letters = kLetter * static_cast<double>(cell.label.size());
    if (height >= 12 && letters <= width) {
      result +=
          text_at(left + width / 2, top + height / 2 + 4, "label middle cell-label", cell.label);
    }
  }
  result += text_at(x + kBox / 2, y + kBox + 14, "label middle faint", box.x_label + " \u2192");
  result += element("text",
                    {{"transform", fmt::format("translate({} {}) rotate(-90)", number(x - 6),
                                               number(y + kBox / 2))},
                     {"class", "label middle faint"}},
                    escaped(box.y_label));
  for (size_t k = 0; k < box.lines.size(); ++k) {
    result += text_at(x + kBox / 2, y + kBox + 32 + 14 * static_cast<double>(k), "label middle",
                      box.lines[k]);
  }
  return result;
}

std::string arrow(const DiagramArrow& arrow, double x1, double x2, double y) {
  const std::string style = arrow.exchange ? "arrow exchange" : "arrow";
  std::string result = line(x1, y, x2 - 6, y, style);
  result += empty_element("path", {{"d", fmt::format("M{0:.1f} {1:.1f} l-9 -5 l0 10 Z", x2, y)},
                                   {"class", arrow.exchange ? "head exchange" : "head"}});
  const double top = y - 8 - 14 * static_cast<double>(arrow.lines.size() - 1);
  for (size_t k = 0; k < arrow.lines.size(); ++k) {
    result +=
        text_at((x1 + x2) / 2, top + 14 * static_cast<double>(k), "label middle", arrow.lines[k]);
  }
  return result;
}

}  // namespace

std::string diagram(const ChartText& text, const std::vector<DiagramRow>& rows) {
  std::string content;
  double y = 0;
  for (const DiagramRow& row : rows) {
    size_t lines = 0;
    for (const DiagramBox& entry : row.boxes) lines = std::max(lines, entry.lines.size());
    content += text_at(0, y + 16, "label strong row-title", row.title);
    const double top = y + 52;
    for (size_t k = 0; k < row.boxes.size(); ++k) {
      content += box(row.boxes[k], box_left(k, row.boxes.size()), top);
      if (k + 1 == row.boxes.size()) break;
      content += arrow(row.arrows[k], box_left(k, row.boxes.size()) + kBox + 8,
                       box_left(k + 1, row.boxes.size()) - 22, top + kBox / 2);
    }
    y = top + kBox + 30 + 14 * static_cast<double>(lines) + 14;
  }
  return picture(text, y, content);
}

}  // namespace autosp::cli
