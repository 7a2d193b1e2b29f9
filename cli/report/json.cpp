#include "report/json.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "base/error.h"
#include "json_text.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;

template <typename T>
concept Leaf = std::is_arithmetic_v<T> || std::is_same_v<T, std::string>;

// The fields of each struct, listed once for both directions.
template <typename Archive>
void fields(Archive& archive, ReportBucket& bucket) {
  archive("name", bucket.name);
  archive("bytes", bucket.bytes);
}

template <typename Archive>
void fields(Archive& archive, ReportRank& rank) {
  archive("rank", rank.rank);
  archive("loss", rank.loss);
  archive("step_seconds", rank.step_seconds);
  archive("compute_seconds", rank.compute_seconds);
  archive("communication_seconds", rank.communication_seconds);
  archive("waiting_seconds", rank.waiting_seconds);
  archive("exposed_seconds", rank.exposed_seconds);
  archive("collectives", rank.collectives);
  archive("bytes_sent", rank.bytes_sent);
  archive("peak_bytes", rank.peak_bytes);
  archive("planned_peak_bytes", rank.planned_peak_bytes);
  archive("measured_peak_bytes", rank.measured_peak_bytes);
  archive("buckets", rank.buckets);
}

template <typename Archive>
void fields(Archive& archive, ReportCollectives& collectives) {
  archive("layer", collectives.layer);
  archive("phase", collectives.phase);
  archive("purpose", collectives.purpose);
  archive("kind", collectives.kind);
  archive("count", collectives.count);
  archive("bytes", collectives.bytes);
  archive("seconds", collectives.seconds);
}

template <typename Archive>
void fields(Archive& archive, ReportMemory& memory) {
  archive("rank", memory.rank);
  archive("nodes", memory.nodes);
  archive("backward_from", memory.backward_from);
  archive("outside_bytes", memory.outside_bytes);
  archive("planned_bytes", memory.planned_bytes);
  archive("stride", memory.stride);
  archive("at", memory.at);
  archive("buckets", memory.buckets);
  archive("bytes", memory.bytes);
}

template <typename Archive>
void fields(Archive& archive, ReportSegment& segment) {
  archive("rank", segment.rank);
  archive("kind", segment.kind);
  archive("start", segment.start);
  archive("duration", segment.duration);
  archive("exposed_seconds", segment.exposed_seconds);
  archive("nodes", segment.nodes);
  archive("label", segment.label);
}

template <typename Archive>
void fields(Archive& archive, ReportTimeline& timeline) {
  archive("seconds", timeline.seconds);
  archive("merged", timeline.merged);
  archive("segments", timeline.segments);
}

template <typename Archive>
void fields(Archive& archive, ReportOperator& op) {
  archive("operator", op.op);
  archive("family", op.family);
  archive("count", op.count);
  archive("seconds", op.seconds);
  archive("flops", op.flops);
  archive("bytes", op.bytes);
  archive("attainable_seconds", op.attainable_seconds);
}

template <typename Archive>
void fields(Archive& archive, ReportDevice& device) {
  archive("name", device.name);
  archive("product", device.product);
  archive("attention", device.attention);
  archive("attention_grad", device.attention_grad);
  archive("bandwidth", device.bandwidth);
}

template <typename Archive>
void fields(Archive& archive, ReportAttentionRank& rank) {
  archive("rank", rank.rank);
  archive("heads", rank.heads);
  archive("kv_heads", rank.kv_heads);
  archive("queries", rank.queries);
  archive("keys", rank.keys);
  archive("row", rank.row);
  archive("column", rank.column);
  archive("replica", rank.replica);
  archive("tokens", rank.tokens);
}

template <typename Archive>
void fields(Archive& archive, ReportLayers& layers) {
  archive("count", layers.count);
  archive("alike", layers.alike);
  archive("batch", layers.batch);
  archive("positions", layers.positions);
  archive("heads", layers.heads);
  archive("ranks", layers.ranks);
  archive("before", layers.before);
  archive("after", layers.after);
}

template <typename Archive>
void fields(Archive& archive, ReportOutput& output) {
  archive("name", output.name);
  archive("role", output.role);
  archive("relative_error", output.relative_error);
  archive("absolute_error", output.absolute_error);
  archive("tolerance", output.tolerance);
  archive("rank", output.rank);
  archive("verdict", output.verdict);
}

template <typename Archive>
void fields(Archive& archive, ReportValidation& validation) {
  archive("equal", validation.equal);
  archive("largest_relative_error", validation.largest_relative_error);
  archive("outputs", validation.outputs);
}

template <typename Archive>
void fields(Archive& archive, ReportUnsharded& unsharded) {
  archive("recompute", unsharded.recompute);
  archive("peak_bytes", unsharded.peak_bytes);
  archive("buckets", unsharded.buckets);
}

template <typename Archive>
void fields(Archive& archive, ReportAxis& axis) {
  archive("name", axis.name);
  archive("size", axis.size);
}

template <typename Archive>
void fields(Archive& archive, ReportData& report) {
  archive("tool_version", report.tool_version);
  archive("folder", report.folder);
  archive("model", report.model);
  archive("feed", report.feed);
  archive("mesh", report.mesh);
  archive("recompute", report.recompute);
  archive("tokens", report.tokens);
  archive("threads_per_rank", report.threads_per_rank);
  archive("steps", report.steps);
  archive("step_seconds", report.step_seconds);
  archive("ranks", report.ranks);
  archive("collectives", report.collectives);
  archive("memory", report.memory);
  archive("timeline", report.timeline);
  archive("device", report.device);
  archive("operators", report.operators);
  archive("layers", report.layers);
  archive("unsharded", report.unsharded);
  archive("unsharded_reason", report.unsharded_reason);
  archive("validation", report.validation);
  archive("warnings", report.warnings);
}

class Writer {
 public:
  template <typename T>
  void operator()(const char* name, T& value) {
    json[name] = write(value);
  }

  Json json = Json::object();

 private:
  static Json write(bool value) { return value; }
  static Json write(int64_t value) { return value; }
  static Json write(double value) { return value; }  // null where it is not finite
  static Json write(const std::string& value) { return value; }
  template <typename T>
  static Json write(std::optional<T>& value) {
    return value ? write(*value) : Json();
  }
  template <typename T>
  static Json write(std::vector<T>& values) {
    Json array = Json::array();
    for (T& value : values) array.push_back(write(value));
    return array;
  }
  template <typename Struct>
  requires(!Leaf<Struct>) static Json write(Struct& value) {
    Writer writer;
    fields(writer, value);
    return writer.json;
  }
};

// Of a report that this or another program has written: nothing is taken for granted.
class Reader {
 public:
  Reader(const Json& json, std::string where, std::string inside)
      : json_(json), where_(std::move(where)), inside_(std::move(inside)) {}

  template <typename T>
  void operator()(const char* name, T& value) {
    const std::string path = inside_.empty() ? name : fmt::format("{}.{}", inside_, name);
    const auto found = json_.find(name);
    if (found == json_.end()) fail(fmt::format("'{}' is missing", path));
    read(*found, path, value);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("'{}' is not a report: {}", where_, what)
        .note("a report is what 'autosp-onnx report --json' writes")
        .help("give such a file, or a folder that 'shard' wrote");
  }
  void expect(bool right, const std::string& path, const char* what) const {
    if (!right) fail(fmt::format("'{}' is not {}", path, what));
  }

  void read(const Json& json, const std::string& path, bool& value) const {
    expect(json.is_boolean(), path, "true or false");
    value = json.get<bool>();
  }
  void read(const Json& json, const std::string& path, int64_t& value) const {
    expect(json.is_number_integer(), path, "a whole number");
    value = json.get<int64_t>();
  }
  void read(const Json& json, const std::string& path, double& value) const {
    expect(json.is_number() || json.is_null(), path, "a number");
    value = json.is_null() ? std::numeric_limits<double>::quiet_NaN() : json.get<double>();
  }
  void read(const Json& json, const std::string& path, std::string& value) const {
    expect(json.is_string(), path, "a string");
    value = json.get<std::string>();
  }
  template <typename T>
  void read(const Json& json, const std::string& path, std::optional<T>& value) const {
    if (!json.is_null()) read(json, path, value.emplace());
  }
  template <typename T>
  void read(const Json& json, const std::string& path, std::vector<T>& values) const {
    expect(json.is_array(), path, "a list");
    for (size_t k = 0; k < json.size(); ++k) {
      read(json[k], fmt::format("{}[{}]", path, k), values.emplace_back());
    }
  }
  template <typename Struct>
  requires(!Leaf<Struct>) void read(const Json& json, const std::string& path,
                                    Struct& value) const {
    expect(json.is_object(), path, "an object");
    Reader reader(json, where_, path);
    fields(reader, value);
  }

  const Json& json_;
  std::string where_;
  std::string inside_;
};

[[noreturn]] void not_a_report(const std::string& where, const std::string& why) {
  throw Error("'{}' is not a report", where)
      .note(why)
      .help("give what 'autosp-onnx report --json' wrote, or a folder that 'shard' wrote");
}

// What charts index by one another must fit together.
void check_consistent(const ReportData& report, const std::string& where) {
  const ReportMemory& memory = report.memory;
  const auto fits = [&](const std::vector<int64_t>& bytes) {
    return bytes.size() == memory.at.size();
  };
  if (memory.bytes.size() != memory.buckets.size() || !std::ranges::all_of(memory.bytes, fits)) {
    not_a_report(where, "the lists of 'memory' have different lengths");
  }
  if (report.ranks.empty()) not_a_report(where, "it has no ranks");
  if (report.layers.count < 0 || (report.layers.count > 0 && report.layers.ranks.empty())) {
    not_a_report(where, "its 'layers' are on no rank");
  }
  const auto ranks = static_cast<int64_t>(report.ranks.size());
  for (const ReportSegment& segment : report.timeline.segments) {
    if (segment.rank < 0 || segment.rank >= ranks) {
      not_a_report(where, fmt::format("'timeline' has a rank {} of {}", segment.rank, ranks));
    }
  }
}

Json json_of(ReportData report) {
  Writer writer;
  fields(writer, report);
  Json json{{"report_format", kFormat}};
  json.update(writer.json);
  return json;
}

}  // namespace

std::string to_json(const ReportData& report) { return json_text(json_of(report), 1); }

std::string to_json(const ReportData& first, const ReportData& second) {
  return json_text({{"first", json_of(first)}, {"second", json_of(second)}}, 1);
}

ReportData read_report(const std::filesystem::path& path) {
  const std::string where = path.string();
  std::ifstream file(path);
  if (!file) {
    throw Error("cannot read '{}': {}", where, std::strerror(errno))
        .note("it was given as a report")
        .help("check that you may read it");
  }
  const Json json = Json::parse(file, nullptr, false);
  if (!json.is_object()) not_a_report(where, "it is no JSON object");
  const auto format = json.find("report_format");
  if (format == json.end()) not_a_report(where, "it has no 'report_format'");
  if (*format != kFormat) {
    not_a_report(where, fmt::format("its format is {}, of another version", format->dump()));
  }
  ReportData report;
  Reader reader(json, where, "");
  fields(reader, report);
  check_consistent(report, where);
  return report;
}

}  // namespace autosp::cli
