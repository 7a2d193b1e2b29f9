#include "onnxruntime/session_settings.h"

#include <charconv>
#include <optional>

#include "onnxruntime/status.h"

namespace autosp::onnxruntime {

namespace {

std::optional<std::string> entry(const OrtApi& api, const OrtSessionOptions& options,
                                 const char* key) {
  int has = 0;
  check(api, call(api, kHasSetting, &options, key, &has));
  if (has == 0) return std::nullopt;
  size_t size = 0;
  check(api, call(api, kGetSetting, &options, key, nullptr, &size));
  std::string value(size, '\0');
  check(api, call(api, kGetSetting, &options, key, value.data(), &size));
  while (!value.empty() && value.back() == '\0') value.pop_back();
  return value;
}

template <typename Number>
Number parse(const char* key, const std::string& text, Number least, Number most) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && value >= least && value <= most) {
    return value;
  }
  throw Error("session config entry {} is '{}'", key, text)
      .note(fmt::format("a number from {} to {}", least, most))
      .help("docs/other_runtimes.md lists the entries");
}

std::string required(const OrtApi& api, const OrtSessionOptions& options, const char* key) {
  const auto value = entry(api, options, key);
  if (value) return *value;
  throw Error("session config entry {} is missing", key)
      .note("with autosp.transport 'threads', a session must say which rank of which world it is")
      .help("add autosp.world, autosp.rank and autosp.ranks");
}

}  // namespace

Settings read_settings(const OrtApi& api, const OrtSessionOptions& options) {
  constexpr int kMostRanks = 1 << 16;
  constexpr double kLongest = 1e9;
  Settings settings;
  const std::string transport = entry(api, options, "autosp.transport").value_or("mpi");
  if (transport != "mpi" && transport != "threads") {
    throw Error("session config entry autosp.transport is '{}'", transport)
        .note("mpi: this process is a rank; threads: this session is one")
        .help("set it to mpi or threads, or leave it out (mpi)");
  }
  settings.threads = transport == "threads";
  if (const auto text = entry(api, options, "autosp.timeout")) {
    settings.timeout = parse("autosp.timeout", *text, 1e-3, kLongest);
  }
  if (!settings.threads) return settings;
  settings.world = required(api, options, "autosp.world");
  settings.ranks = parse("autosp.ranks", required(api, options, "autosp.ranks"), 1, kMostRanks);
  settings.rank =
      parse("autosp.rank", required(api, options, "autosp.rank"), 0, settings.ranks - 1);
  return settings;
}

}  // namespace autosp::onnxruntime
