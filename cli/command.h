// The subcommands of autosp-onnx. Each lives in a file of its own and is listed in main.cpp.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "base/error.h"

namespace autosp::cli {

// Exit codes besides 0.
// What was asked about does not hold: results differ or are not finite (validate, report),
// something failed (batch, check).
inline constexpr int kMismatch = 1;
inline constexpr int kUserError = 2;  // a message says what to change
inline constexpr int kBug = 70;       // of this program
// A signal ends `shard` and `batch` with 128 and the signal's number (interruption.h).

// What an exception means to the user.
struct Failure {
  std::string text;  // all lines, without a trailing newline
  int code = kBug;
};
// A report that standard output did not take, for example because the disk is full, was not given.
Error not_printed(int problem);
// Of the exception that is being handled; to be called in a catch clause.
Failure current_failure();

// What the parsed command line asks for; returns the exit code.
using Action = std::function<int()>;

// Each declares a subcommand and, when it is the one given, sets `action`.
void add_shard(CLI::App& app, Action& action);
void add_run(CLI::App& app, Action& action);
void add_validate(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_explain(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_batch(CLI::App& app, Action& action);
void add_check(CLI::App& app, Action& action);
void add_completion(CLI::App& app, Action& action);
void add_report(CLI::App& app, Action& action);
void add_replay(CLI::App& app, Action& action);
void add_feed(CLI::App& app, Action& action);
void add_train(CLI::App& app, Action& action);
void add_devices(CLI::App& app, Action& action);

}  // namespace autosp::cli
