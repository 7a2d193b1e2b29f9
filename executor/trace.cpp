#include "executor/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "executor/part_file.h"

namespace autosp::executor {

namespace {

// Bytes of the UTF-8 character that the text begins with; 0 when it begins with none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char first = byte(0);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (length > text.size()) return 0;
  for (size_t k = 1; k < length; ++k) {
    if ((byte(k) & 0xc0U) != 0x80) return 0;
  }
  if (length < 3) return length;
  // Longer than needed, of a surrogate, or beyond the last character.
  const bool wrong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f) ||
                     (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f);
  return wrong ? 0 : length;
}

std::string json_string(std::string_view text) {
  std::string result = "\"";
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    const char c = text[0];
    if (length == 0) {
      result += "\\ufffd";  // names in models need not be UTF-8
    } else if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      result += fmt::format("\\u{:04x}", c);
    } else {
      result += text.substr(0, length);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return result + '"';
}

}  // namespace

void write_trace(const std::filesystem::path& path, const std::vector<TraceEvent>& events) {
  PartFile part(path);
  {
    std::ofstream file(part.path());
    file << "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
    int ranks = 0;
    for (const TraceEvent& event : events) ranks = std::max(ranks, event.rank + 1);
    for (int rank = 0; rank < ranks; ++rank) {
      file << fmt::format(
          "{{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": 0, \"tid\": {0}, "
          "\"args\": {{\"name\": \"rank {0}\"}}}}{1}\n",
          rank, rank + 1 < ranks || !events.empty() ? "," : "");
    }
    for (size_t k = 0; k < events.size(); ++k) {
      const TraceEvent& event = events[k];
      file << fmt::format(
          "{{\"ph\": \"X\", \"name\": {}, \"cat\": {}, \"pid\": 0, \"tid\": {}, \"ts\": {:.3f}, "
          "\"dur\": {:.3f}, \"args\": {{\"operator\": {}, \"bytes\": {}}}}}{}\n",
          json_string(event.name), json_string(event.category), event.rank, event.start * 1e6,
          event.duration * 1e6, json_string(event.category), event.bytes,
          k + 1 < events.size() ? "," : "");
    }
    file << "]}\n";
    file.flush();
    if (!file) part.refuse(std::strerror(errno));
  }
  part.commit();
}

}  // namespace autosp::executor
