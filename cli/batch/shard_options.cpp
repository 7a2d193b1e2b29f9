#include "batch/shard_options.h"

#include <algorithm>

#include "base/error.h"
#include "command.h"

namespace autosp::cli::batch {

namespace {

std::vector<ShardOption> list_options() {
  CLI::App app;
  Action action;
  add_shard(app, action);
  std::vector<ShardOption> result;
  for (const CLI::Option* option : app.get_subcommand("shard")->get_options()) {
    static const std::vector<std::string> kOwn = {"help",        "output", "json",
                                                  "print-after", "timing", "depfile"};
    if (option->get_lnames().empty()) continue;  // the model
    const std::string& name = option->get_lnames()[0];
    if (std::ranges::find(kOwn, name) != kOwn.end()) continue;
    ShardOption row{.name = name, .help = option->get_description()};
    if (option->get_expected_max() == 0) {
      row.kind = OptionKind::kFlag;
    } else if (option->get_expected_max() > 1) {
      row.kind = OptionKind::kList;
    }
    row.type = option->get_type_name();
    result.push_back(std::move(row));
  }
  return result;
}

}  // namespace

const std::vector<ShardOption>& shard_options() {
  static const std::vector<ShardOption> kOptions = list_options();
  return kOptions;
}

const ShardOption* find_shard_option(const std::string& name) {
  const auto found = std::ranges::find(shard_options(), name, &ShardOption::name);
  return found == shard_options().end() ? nullptr : &*found;
}

void check_arguments(const std::vector<std::string>& arguments, const std::string& origin) {
  CLI::App app;
  Action action;
  add_shard(app, action);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 wants them
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& failure) {
    throw Error("{}", failure.what())
        .note(fmt::format("in {}", origin))
        .help("'autosp-onnx shard --help' lists the options and their values");
  }
}

}  // namespace autosp::cli::batch
