#include "executor/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>

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
    const char* separator = "";
    const auto add = [&](const std::string& event) {
      file << separator << event;
      separator = ",\n";
    };
    int ranks = 0;
    for (const TraceEvent& event : events) ranks = std::max(ranks, event.rank + 1);
    const auto track_of = [ranks](const TraceEvent& event) {
      return event.beside ? ranks + event.rank : event.rank;
    };
    std::map<int, const TraceEvent*> tracks;  // with an event of each
    for (const TraceEvent& event : events) tracks.emplace(track_of(event), &event);
    for (const auto& [track, event] : tracks) {
      const auto describe = [&, number = track](const char* what, const std::string& value) {
        add(
            fmt::format("{{\"ph\": \"M\", \"name\": \"thread_{}\", \"pid\": 0, \"tid\": {}, "
                        "\"args\": {{{}}}}}",
                        what, number, value));
      };
      describe("name", fmt::format("\"name\": \"rank {}{}\"", event->rank,
                                   event->beside ? ", collectives" : ""));
      describe("sort_index", fmt::format("\"sort_index\": {}", 2 * event->rank + event->beside));
    }
    for (const TraceEvent& event : events) {
      add(fmt::format(
          "{{\"ph\": \"X\", \"name\": {}, \"cat\": {}, \"pid\": 0, \"tid\": {}, "
          "\"ts\": {:.3f}, \"dur\": {:.3f}, "
          "\"args\": {{\"operator\": {}, \"bytes\": {}}}}}",
          json_string(event.name), json_string(event.category), track_of(event), event.start * 1e6,
          event.duration * 1e6, json_string(event.category), event.bytes));
    }
    file << "\n";
    file << "]}\n";
    file.flush();
    if (!file) part.refuse(std::strerror(errno));
  }
  part.commit();
}

}  // namespace autosp::executor
