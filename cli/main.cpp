#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <span>

#include "base/error.h"
#include "command.h"

namespace {

using namespace autosp;

constexpr const char* kDescription =
    "Splits ONNX training graphs (forward, loss and backward in one graph) along the sequence "
    "over\n"
    "several ranks, runs the ranks, and checks that loss and every gradient are unchanged.";

constexpr const char* kExamples = R"(
Start with these:
  autosp-onnx check model.onnx --dim seq=4096 --sp 4   whether all is well, and what to do if not
  autosp-onnx inspect model.onnx --dim seq=4096        what the model is and how far it can be split
  autosp-onnx shard model.onnx --dim seq=4096 --sp 4 -o out
  autosp-onnx validate model.onnx out                  compares loss and gradients with the whole model
  autosp-onnx run out --feed inputs.npz --output results.npz
  autosp-onnx train out --data batches.npz --steps 100  of a model sharded with --optimizer

'autosp-onnx COMMAND --help' explains a command.
Exit codes: 0 success, 1 results differ or are not finite (validate, report) or something failed (batch, check), 2 an error you can mend, 70 a bug of this program.)";

// CLI11 would only say that a command is required.
void check_command(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  const std::string given = argv[1];
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (command->get_name() == given) return;
    names.push_back(command->get_name());
  }
  Error error("there is no command '{}'", given);
  error.note(fmt::format("the commands are {}", fmt::join(names, ", ")));
  const std::string near = nearest_name(given, names);
  throw error.help(near.empty() ? "'autosp-onnx --help' explains them"
                                : fmt::format("did you mean '{}'?", near));
}

// An option that the command does not have, and the one that it is nearest to.
std::string misspelt_option(const CLI::App& command, std::span<char*> words) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  for (const std::string word : words) {
    const std::string name = word.substr(0, word.find('='));
    if (!name.starts_with("--") || std::ranges::find(names, name) != names.end()) continue;
    const std::string near = nearest_name(name, names);
    if (!near.empty()) return fmt::format("'{}' is no option: did you mean '{}'?", name, near);
  }
  return "";
}

Error to_error(const CLI::ParseError& failure, const CLI::App& command, std::span<char*> words) {
  const bool own = command.get_parent() != nullptr;
  const std::string name = own ? "autosp-onnx " + command.get_name() : "autosp-onnx";
  const std::string near = misspelt_option(command, words);
  return Error("{}", failure.what())
      .note(fmt::format("in the command line of '{}'", name))
      .help(near.empty() ? fmt::format("'{} --help' lists what it takes", name) : near);
}

void check_printed() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw cli::not_printed(errno);
}

int parse(CLI::App& app, int argc, char** argv, const cli::Action& action) {
  check_command(app, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {  // --help, --version
    return app.exit(request);
  } catch (const CLI::ParseError& failure) {
    const CLI::App* command = &app;
    for (const CLI::App* used : app.get_subcommands()) command = used;
    throw to_error(failure, *command, std::span(argv, static_cast<size_t>(argc)));
  }
  return action();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(kDescription, "autosp-onnx");
  app.footer(kExamples);
  app.set_version_flag("--version", "autosp-onnx " AUTOSP_VERSION);
  app.require_subcommand(1);
  cli::Action action;
  cli::add_check(app, action);
  cli::add_shard(app, action);
  cli::add_feed(app, action);
  cli::add_run(app, action);
  cli::add_train(app, action);
  cli::add_validate(app, action);
  cli::add_inspect(app, action);
  cli::add_explain(app, action);
  cli::add_plan(app, action);
  cli::add_batch(app, action);
  cli::add_completion(app, action);
  cli::add_report(app, action);
  cli::add_replay(app, action);
  cli::add_devices(app, action);
  try {
    const int code = parse(app, argc, argv, action);
    check_printed();
    return code;
  } catch (...) {
    const cli::Failure failure = cli::current_failure();
    std::fputs((failure.text + "\n").c_str(), stderr);  // which may lead to a full disk
    return failure.code;
  }
}
