#include "executor/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/utf8.h"
#include "executor/part_file.h"

namespace autosp::executor {

namespace {

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
