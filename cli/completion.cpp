// autosp-onnx completion SHELL: what a shell completes, from the commands' own options.
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "command.h"

namespace autosp::cli {

namespace {

constexpr const char* kFooter = R"(
Examples:
  source <(autosp-onnx completion bash)
  autosp-onnx completion fish > ~/.config/fish/completions/autosp-onnx.fish
  autosp-onnx completion zsh > ~/.zfunc/_autosp-onnx       a folder of $fpath)";

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<std::string> options_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

std::vector<std::string> names_of(const std::vector<const CLI::App*>& commands) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands) names.push_back(command->get_name());
  return names;
}

// Words that begin with a dash are options, others files.
std::string bash_script(const CLI::App& app) {
  const auto commands = commands_of(app);
  std::string cases;
  for (const CLI::App* command : commands) {
    cases += fmt::format("    {}) words=\"{}\" ;;\n", command->get_name(),
                         fmt::join(options_of(*command), " "));
  }
  return fmt::format(R"(_autosp_onnx() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} words
  if ((COMP_CWORD == 1)); then
    mapfile -t COMPREPLY < <(compgen -W "{} {}" -- "$current")
    return
  fi
  case ${{COMP_WORDS[1]}} in
{}  esac
  if [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  else
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}}
complete -o filenames -F _autosp_onnx autosp-onnx
)",
                     fmt::join(names_of(commands), " "), fmt::join(options_of(app), " "), cases);
}

// Between single quotes, and on one line.
std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char letter : text) {
    if (letter == '\'' || letter == '\\') result += '\\';
    result += letter == '\n' ? ' ' : letter;
  }
  return result + "'";
}

std::string fish_script(const CLI::App& app) {
  std::string script;
  for (const CLI::App* command : commands_of(app)) {
    const std::string& name = command->get_name();
    script += fmt::format("complete -c autosp-onnx -n __fish_use_subcommand -f -a {} -d {}\n", name,
                          quoted(command->get_description()));
    for (const CLI::Option* option : command->get_options()) {
      if (option->get_lnames().empty()) continue;
      script +=
          fmt::format("complete -c autosp-onnx -n '__fish_seen_subcommand_from {}' -l {}{} -d {}\n",
                      name, option->get_lnames()[0], option->get_expected_max() == 0 ? "" : " -r",
                      quoted(option->get_description()));
    }
  }
  return script;
}

// A description as zsh's _arguments and _describe take it, within single quotes.
std::string zsh_text(const std::string& text) {
  std::string result;
  for (const char letter : text) {
    if (letter == '\'') {
      result += "'\\''";
      continue;
    }
    if (std::string_view(":[]\\").find(letter) != std::string_view::npos) result += '\\';
    result += letter == '\n' ? ' ' : letter;
  }
  return result;
}

// Options with their values, which are files like other words.
std::string zsh_arguments(const CLI::App& command) {
  std::string arguments = "'*:file:_files'";
  for (const CLI::Option* option : command.get_options()) {
    const bool takes_value = option->get_expected_max() > 0;
    const auto add = [&](const std::string& name, const char* before_value) {
      arguments +=
          fmt::format(" \\\n        '{}{}[{}]{}'", name, takes_value ? before_value : "",
                      zsh_text(option->get_description()), takes_value ? ":value:_files" : "");
    };
    for (const std::string& name : option->get_lnames()) add("--" + name, "=");
    for (const std::string& name : option->get_snames()) add("-" + name, "+");
  }
  return arguments;
}

std::string zsh_script(const CLI::App& app) {
  std::string commands;
  std::string cases;
  for (const CLI::App* command : commands_of(app)) {
    commands +=
        fmt::format("    '{}:{}'\n", command->get_name(), zsh_text(command->get_description()));
    cases += fmt::format("    {})\n      _arguments {} ;;\n", command->get_name(),
                         zsh_arguments(*command));
  }
  return fmt::format(R"(#compdef autosp-onnx
_autosp_onnx() {{
  local -a commands=(
{}  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  ((CURRENT--))
  case $command in
{}  esac
}}
if [[ $funcstack[1] == _autosp-onnx ]]; then
  _autosp_onnx "$@"
else
  compdef _autosp_onnx autosp-onnx
fi
)",
                     commands, cases);
}

struct Shell {
  const char* name;
  std::string (*script)(const CLI::App&);
};

constexpr Shell kShells[] = {{"bash", bash_script}, {"fish", fish_script}, {"zsh", zsh_script}};

}  // namespace

void add_completion(CLI::App& app, Action& action) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "Prints what a shell completes");
  command->footer(kFooter);
  std::vector<std::string> names;
  for (const Shell& known : kShells) names.emplace_back(known.name);
  command->add_option("shell", *shell, fmt::format("{}", fmt::join(names, ", ")))
      ->required()
      ->type_name("SHELL")
      ->check(CLI::IsMember(names));
  command->callback([shell, &app, &action] {
    action = [shell, &app] {
      fmt::print("{}", std::ranges::find(kShells, *shell, &Shell::name)->script(app));
      return 0;
    };
  });
}

}  // namespace autosp::cli
