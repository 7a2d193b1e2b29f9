// What pages are made of: tables, figures, legends, sections. Text that comes in is escaped.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace autosp::cli {

struct Column {
  std::string title;
  enum class Kind : uint8_t { kText, kName, kNumber } kind = Kind::kText;
  std::string hint;
};
using Row = std::vector<std::string>;
inline constexpr auto kName = Column::Kind::kName;
inline constexpr auto kNumber = Column::Kind::kNumber;

// The last row is a sum where `sum` says so.
std::string table(const std::string& caption, const std::vector<Column>& columns,
                  const std::vector<Row>& rows, bool sum = false);

// What a click on `summary` shows; `content` is markup.
std::string details(const std::string& summary, const std::string& content);

// `chart` is markup.
std::string figure(const std::string& chart, const std::string& caption);

struct Swatch {
  std::string name;
  std::string style;
};

std::string legend(const std::vector<Swatch>& swatches);

struct Section {
  std::string title;
  std::string content;  // markup
};
std::string section(const Section& section);

std::string paragraph(const std::string& text);

// A whole page with the style sheet of reports; `content` is markup.
std::string page(const std::string& title, const std::string& content);

}  // namespace autosp::cli
