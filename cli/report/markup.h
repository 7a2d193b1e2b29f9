// HTML and SVG as text: every name that comes in is escaped here and nowhere else.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace autosp::cli {

// Text as the content of an element or the value of an attribute. Bytes that are not UTF-8 and
// control characters, which neither HTML nor XML takes, become replacement characters.
std::string escaped(std::string_view text);

// At most about `length` bytes of a text, with a sign where it was cut.
std::string shortened(const std::string& text, size_t length);

using Attributes = std::initializer_list<std::pair<std::string_view, std::string>>;

// <name attribute="value">content</name>; `content` is markup, attributes are text,
// and left out where they are empty.
std::string element(std::string_view name, const Attributes& attributes, std::string_view content);
// <name attribute="value"/>
std::string empty_element(std::string_view name, const Attributes& attributes);

// The content is text.
std::string text_element(std::string_view name, const Attributes& attributes,
                         std::string_view text);

}  // namespace autosp::cli
