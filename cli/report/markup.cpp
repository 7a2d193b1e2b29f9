#include "report/markup.h"

#include <algorithm>

#include "base/utf8.h"

namespace autosp::cli {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

std::string opening(std::string_view name, const Attributes& attributes) {
  std::string result = "<";
  result += name;
  for (const auto& [attribute, value] : attributes) {
    if (value.empty()) continue;
    result += ' ';
    result += attribute;
    result += "=\"" + escaped(value) + '"';
  }
  return result;
}

// What a character that means something to a parser is written as; "" for others.
std::string_view entity(char c) {
  switch (c) {
    case '&':
      return "&amp;";
    case '<':
      return "&lt;";
    case '>':
      return "&gt;";
    case '"':
      return "&quot;";
    case '\'':
      return "&#39;";
    default:
      return "";
  }
}

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f;
}

// U+FFFE and U+FFFF are valid UTF-8 that XML does not take.
bool is_noncharacter(std::string_view character) {
  return character == "\xef\xbf\xbe" || character == "\xef\xbf\xbf";
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    const std::string_view character = text.substr(0, std::max<size_t>(length, 1));
    if (length == 0 || is_control(text[0]) || is_noncharacter(character)) {
      result += kReplacement;
    } else if (const std::string_view name = entity(text[0]); !name.empty()) {
      result += name;
    } else {
      result += character;
    }
    text.remove_prefix(character.size());
  }
  return result;
}

std::string shortened(const std::string& text, size_t length) {
  if (text.size() <= length) return text;
  size_t end = length - 1;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0U) == 0x80) --end;
  return text.substr(0, end) + "\u2026";
}

std::string element(std::string_view name, const Attributes& attributes, std::string_view content) {
  std::string result = opening(name, attributes);
  result += '>';
  result += content;
  result += "</";
  result += name;
  result += ">\n";
  return result;
}

std::string empty_element(std::string_view name, const Attributes& attributes) {
  return opening(name, attributes) + "/>\n";
}

std::string text_element(std::string_view name, const Attributes& attributes,
                         std::string_view text) {
  return element(name, attributes, escaped(text));
}

}  // namespace autosp::cli
