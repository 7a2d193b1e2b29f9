#include <fmt/ranges.h>

#include <cstdio>

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
  autosp-onnx inspect model.onnx --dim seq=4096        what the model is and how far it can be split
  autosp-onnx shard model.onnx --dim seq=4096 --sp 4 -o out
  autosp-onnx validate model.onnx out                  compares loss and gradients with the whole model
  autosp-onnx run out --feed inputs.npz --output results.npz

'autosp-onnx COMMAND --help' explains a command.
Exit codes: 0 success, 1 results differ or are not finite (validate), 2 an error you can mend, 70 a bug of this program.)";

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

int parse(CLI::App& app, int argc, char** argv, const cli::Action& action) {
  check_command(app, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {  // --help, --version
    return app.exit(request);
  } catch (const CLI::ParseError& failure) {
    std::string command = "autosp-onnx";
    for (const CLI::App* used : app.get_subcommands()) command += " " + used->get_name();
    throw Error("{}", failure.what())
        .note(fmt::format("in the command line of '{}'", command))
        .help(fmt::format("'{} --help' lists what it takes", command));
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
  cli::add_shard(app, action);
  cli::add_run(app, action);
  cli::add_validate(app, action);
  cli::add_inspect(app, action);
  cli::add_explain(app, action);
  cli::add_plan(app, action);
  try {
    return parse(app, argc, argv, action);
  } catch (...) {
    const cli::Failure failure = cli::current_failure();
    fmt::print(stderr, "{}\n", failure.text);
    return failure.code;
  }
}
