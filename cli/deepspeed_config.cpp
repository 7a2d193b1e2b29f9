#include "deepspeed_config.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

// The value of a key, and where it stands.
struct Entry {
  std::string key;  // "compile.passes"
  const Json& value;
  const std::filesystem::path& path;

  [[noreturn]] void refuse(const std::string& wanted) const {
    throw Error("'{}' of '{}' is {}, not {}", key, path.string(), value.dump(), wanted)
        .note("given with --deepspeed-config")
        .help("DeepSpeed's documentation of its configuration says what the key takes");
  }
};

// A row takes the value, or returns false where nothing follows from it.
using Take = bool (*)(const Entry&, DeepSpeedConfig&);

template <auto member>
bool take_count(const Entry& entry, DeepSpeedConfig& config) {
  if (!entry.value.is_number_integer()) entry.refuse("a whole number");
  const auto count = entry.value.get<int64_t>();
  if (count < 1 || count > std::numeric_limits<int32_t>::max()) {
    entry.refuse("a whole number of 1 or more, of at most 31 bits");
  }
  config.*member = count;
  return true;
}

// Stage 0 divides nothing, with and without an update.
bool take_zero_stage(const Entry& entry, DeepSpeedConfig& config) {
  if (!entry.value.is_number_integer()) entry.refuse("0, 1, 2 or 3");
  const auto stage = entry.value.get<int64_t>();
  if (stage < 0 || stage > 3) entry.refuse("0, 1, 2 or 3");
  config.update.zero_stage = static_cast<int>(stage);
  if (stage > 0) config.update.keys.push_back(entry.key);
  return true;
}

double number_from(const Entry& entry, double least, const std::string& wanted) {
  const bool fits = entry.value.is_number() && entry.value.get<double>() >= least &&
                    entry.value.get<double>() <= std::numeric_limits<float>::max();
  if (!fits) entry.refuse(wanted);
  return entry.value.get<double>();
}

bool take_clipping(const Entry& entry, DeepSpeedConfig& config) {
  config.update.clip_norm = number_from(entry, 0, "a number from 0 on");
  if (*config.update.clip_norm > 0) config.update.keys.push_back(entry.key);
  return true;
}

bool take_optimizer_setting(const Entry& entry, const std::string& name,
                            transforms::OptimizerSettings& settings) {
  const auto number = [&](const Json& value, const std::string& key) {
    return number_from({key, value, entry.path}, 0, "a number from 0 on");
  };
  if (name == "eps") {
    settings.epsilon = number(entry.value, entry.key);
  } else if (name == "weight_decay") {
    settings.weight_decay = number(entry.value, entry.key);
  } else if (name == "momentum") {
    settings.momentum = number(entry.value, entry.key);
  } else if (name == "betas") {
    if (!entry.value.is_array() || entry.value.size() != 2) entry.refuse("a list of two numbers");
    settings.beta1 = number(entry.value[0], entry.key + "[0]");
    settings.beta2 = number(entry.value[1], entry.key + "[1]");
    // As float32, which the update has them in.
    if (static_cast<float>(std::max(settings.beta1, settings.beta2)) >= 1) {
      entry.refuse("two numbers below 1");
    }
  } else {
    return false;
  }
  return true;
}

// Types that there is an optimizer for here. DeepSpeed's Adam decays weights apart from the
// gradient, as AdamW does, unless adam_w_mode is false.
bool take_optimizer(const Entry& entry, DeepSpeedConfig& config) {
  if (!entry.value.is_object()) entry.refuse("an object with a type and params");
  const Json type = entry.value.value("type", Json());
  if (!type.is_string()) entry.refuse("an object with a type, the name of an optimizer");
  std::string name = type.get<std::string>();
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  if (name != "adam" && name != "adamw" && name != "sgd" && name != "adagrad") return false;
  const Json params = entry.value.value("params", Json::object());
  if (!params.is_object()) entry.refuse("an object with a type, and params that are an object");
  transforms::OptimizerSettings settings{.name = name == "adam" ? "adamw" : name};
  for (const auto& [key, value] : params.items()) {
    const Entry setting{entry.key + ".params." + key, value, entry.path};
    if (name == "adam" && key == "adam_w_mode") {
      if (!value.is_boolean()) setting.refuse("true or false");
      if (!value.get<bool>()) settings.name = "adam";
    } else if (value == "auto" || !take_optimizer_setting(setting, key, settings)) {
      config.unused.push_back(setting.key);
    }
  }
  config.update.optimizer = settings;
  config.update.keys.push_back(entry.key);
  return true;
}

bool take_passes(const Entry& entry, DeepSpeedConfig& config) {
  if (!entry.value.is_array()) entry.refuse("a list of names");
  for (const Json& pass : entry.value) {
    if (!pass.is_string()) entry.refuse("a list of names");
    if (pass == "autosp") {
      config.wants_autosp = true;
    } else {
      config.unused.push_back(fmt::format("{} '{}'", entry.key, pass.get<std::string>()));
    }
  }
  return true;
}

struct Row {
  std::string_view key;
  Take take;
};

// An option of this program that a key stands for is a row here; keys without a row are unused.
constexpr Row kRows[] = {
    {"sequence_parallel_size", take_count<&DeepSpeedConfig::sp>},
    {"train_batch_size", take_count<&DeepSpeedConfig::total_batch>},
    {"train_micro_batch_size_per_gpu", take_count<&DeepSpeedConfig::micro_batch>},
    {"gradient_accumulation_steps", take_count<&DeepSpeedConfig::accumulation>},
    {"zero_optimization.stage", take_zero_stage},
    {"compile.passes", take_passes},
    {"gradient_clipping", take_clipping},
    {"optimizer", take_optimizer},
};

bool has_rows_below(const std::string& key) {
  return std::ranges::any_of(kRows, [&](const Row& row) { return row.key.starts_with(key + "."); });
}

void read_entry(const Entry& entry, DeepSpeedConfig& config) {
  if (entry.value.is_object() && has_rows_below(entry.key)) {
    for (const auto& [name, value] : entry.value.items()) {
      read_entry({entry.key + "." + name, value, entry.path}, config);
    }
    return;
  }
  const auto* const row = std::ranges::find(kRows, entry.key, &Row::key);
  const bool given = entry.value != "auto";  // left to whoever starts the training
  if (row == std::end(kRows) || !given || !row->take(entry, config)) {
    config.unused.push_back(entry.key);
  }
}

Json read_json(const std::filesystem::path& path) {
  std::ifstream stream(path);
  std::error_code code;
  if (!stream || std::filesystem::is_directory(path, code)) {
    throw Error("cannot read '{}': {}", path.string(),
                stream ? "it is a folder" : std::strerror(errno))
        .note("given with --deepspeed-config")
        .help("give the path of a DeepSpeed configuration, a JSON file");
  }
  std::string reason = "it is not an object";
  try {
    Json json = Json::parse(stream);
    if (json.is_object()) return json;
  } catch (const Json::exception& problem) {
    reason = problem.what();
  }
  throw Error("'{}' is no DeepSpeed configuration: {}", path.string(), reason)
      .note("given with --deepspeed-config")
      .help("give a JSON file that holds an object, as deepspeed.initialize takes it");
}

[[noreturn]] void contradict(const std::string& what, const std::string& why,
                             const std::string& what_to_do) {
  throw Error("{}", what).note(why).help(what_to_do);
}

int64_t divided(int64_t total, int64_t by, const std::string& names,
                const std::filesystem::path& path) {
  if (total % by == 0) return total / by;
  contradict(fmt::format("'{}': train_batch_size {} is no multiple of {} = {}", path.string(),
                         total, names, by),
             "train_batch_size = train_micro_batch_size_per_gpu * gradient_accumulation_steps * "
             "data-parallel replicas",
             "make the numbers agree, or leave one of them out");
}

}  // namespace

DeepSpeedConfig read_deepspeed_config(const std::filesystem::path& path) {
  const Json json = read_json(path);
  DeepSpeedConfig config;
  for (const auto& [name, value] : json.items()) read_entry({name, value, path}, config);
  return config;
}

StepDivision divide_step(const DeepSpeedConfig& config, const std::filesystem::path& path,
                         std::optional<int64_t> sp, std::optional<int64_t> dp) {
  StepDivision result{.sp = sp, .dp = dp, .batch = std::nullopt};
  if (config.sp && sp && *sp != *config.sp) {
    contradict(fmt::format("--sp or --sp-mesh asks for {} ranks per sequence, '{}' for {}", *sp,
                           path.string(), *config.sp),
               "its sequence_parallel_size says so", "leave one of them out, or make them agree");
  }
  if (!sp) result.sp = config.sp;
  if (config.wants_autosp && !result.sp) {
    contradict(fmt::format("'{}' asks for the pass autosp, but not for how many ranks share a "
                           "sequence",
                           path.string()),
               "without sequence_parallel_size nothing would be split",
               "add \"sequence_parallel_size\" to it, or give --sp");
  }
  if (config.total_batch && config.micro_batch && config.accumulation) {
    const int64_t replicas =
        divided(*config.total_batch, *config.micro_batch * *config.accumulation,
                "train_micro_batch_size_per_gpu * gradient_accumulation_steps", path);
    if (dp && *dp != replicas) {
      contradict(
          fmt::format("--dp is {}, but '{}' means {} replicas", *dp, path.string(), replicas),
          fmt::format("train_batch_size {} / (train_micro_batch_size_per_gpu {} * "
                      "gradient_accumulation_steps {})",
                      *config.total_batch, *config.micro_batch, *config.accumulation),
          "leave --dp out, or make them agree");
    }
    result.dp = replicas;
  }
  const int64_t replicas = result.dp.value_or(1);
  if (config.micro_batch) {
    result.batch = *config.micro_batch * replicas;
    if (config.total_batch) {
      divided(*config.total_batch, *result.batch, "train_micro_batch_size_per_gpu * --dp", path);
    }
  } else if (config.total_batch) {
    result.batch = divided(*config.total_batch, config.accumulation.value_or(1),
                           "gradient_accumulation_steps", path);
    divided(*result.batch, replicas, "--dp", path);
  }
  return result;
}

}  // namespace autosp::cli
