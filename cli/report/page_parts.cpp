#include "report/page_parts.h"

#include "report/markup.h"
#include "report/style.h"

namespace autosp::cli {

namespace {

std::string style_of(Column::Kind kind) {
  return kind == kNumber ? "number" : kind == kName ? "name" : "text";
}

std::string table_row(const std::vector<Column>& columns, const Row& row,
                      const std::string& style) {
  std::string cells;
  for (size_t k = 0; k < columns.size(); ++k) {
    cells += text_element("td", {{"class", style_of(columns[k].kind)}}, row[k]);
  }
  return element("tr", {{"class", style}}, cells);
}

}  // namespace

std::string table(const std::string& caption, const std::vector<Column>& columns,
                  const std::vector<Row>& rows, bool sum) {
  std::string head;
  for (const Column& column : columns) {
    head += text_element(
        "th", {{"class", style_of(column.kind)}, {"scope", "col"}, {"title", column.hint}},
        column.title);
  }
  std::string body;
  for (size_t k = 0; k < rows.size(); ++k) {
    body += table_row(columns, rows[k], sum && k + 1 == rows.size() ? "sum" : "row");
  }
  const std::string content = text_element("caption", {}, caption) +
                              element("thead", {}, element("tr", {}, head)) +
                              element("tbody", {}, body);
  return element("div", {{"class", "scroll"}}, element("table", {}, content));
}

std::string details(const std::string& summary, const std::string& content) {
  return element("details", {}, text_element("summary", {}, summary) + content);
}

std::string figure(const std::string& chart, const std::string& caption) {
  return element(
      "figure", {},
      element("div", {{"class", "chart"}}, chart) + text_element("figcaption", {}, caption));
}

std::string legend(const std::vector<Swatch>& swatches) {
  std::string items;
  for (const Swatch& swatch : swatches) {
    const std::string mark = element(
        "svg", {{"viewBox", "0 0 14 12"}, {"aria-hidden", "true"}},
        empty_element("rect", {{"width", "14"}, {"height", "12"}, {"class", swatch.style}}));
    items += element("li", {}, mark + escaped(swatch.name));
  }
  return element("ul", {{"class", "legend"}}, items);
}

std::string section(const Section& section) {
  return element("section", {}, text_element("h2", {}, section.title) + section.content);
}

std::string paragraph(const std::string& text) { return text_element("p", {}, text); }

std::string page(const std::string& title, const std::string& content) {
  const std::string head =
      empty_element("meta", {{"charset", "utf-8"}}) +
      empty_element("meta",
                    {{"name", "viewport"}, {"content", "width=device-width, initial-scale=1"}}) +
      text_element("title", {}, title) + element("style", {}, report_style_sheet());
  return "<!DOCTYPE html>\n" +
         element("html", {{"lang", "en"}},
                 element("head", {}, head) + element("body", {}, element("main", {}, content)));
}

}  // namespace autosp::cli
