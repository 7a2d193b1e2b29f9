// --optimizer, --zero and what belongs to them, and the training that they lead to.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "model_arguments.h"
#include "onnx/manifest.h"
#include "transforms/spmd/program.h"
#include "transforms/training/exchange.h"

namespace autosp::cli {

struct TrainingArguments {
  transforms::OptimizerSettings optimizer{.name = ""};
  int zero = 0;
  int64_t accumulate = 1;
  std::string bucket = "32MiB";
  std::filesystem::path optimizer_model;  // in place of the optimizer's name and settings

  bool wanted() const { return !optimizer.name.empty() || !optimizer_model.empty(); }
};

CLI::Validator learning_rate();  // of --lr
void add_training_options(CLI::App& command, TrainingArguments& arguments);
// Takes what --deepspeed-config says and options leave open, and reads --optimizer-model. Throws
// Error where options and configuration contradict each other, for an optimizer that is not known,
// and for options that belong to none or to another one.
void settle(TrainingArguments& arguments, const std::filesystem::path& deepspeed_config);

// Where micro-batches are accumulated and the loss is a quotient, gives out what it is divided by
// (the number of valid tokens): micro-batches weigh as much as they have tokens.
void add_loss_weight(const TrainingArguments& arguments, LoadedModel& model);

// The exchange of gradients and parameters of a program as it will be emitted; null without an
// optimizer.
std::shared_ptr<const transforms::Exchange> plan_training(const TrainingArguments& arguments,
                                                          const transforms::SpmdProgram& program);

// Fills manifest.training and adds the update's collectives; nothing without an exchange.
void describe_training(const transforms::SpmdProgram& program, onnx_io::Manifest& manifest);

std::string update_file(int64_t rank);      // "optimizer_rank_3.onnx"
std::string accumulate_file(int64_t rank);  // "accumulate_rank_3.onnx"
// Parameters that the model held itself, as it held them: they are inputs of what was sharded.
inline constexpr const char* kInitialFile = "initial_parameters.npz";
inline constexpr const char* kLossWeight = "autosp.loss_weight";  // output of rank graphs

}  // namespace autosp::cli
