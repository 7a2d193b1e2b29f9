// autosp-onnx train OUT --data batches.npz: steps and updates of a sharded model.
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.h"
#include "command.h"
#include "executor/openblas.h"
#include "executor/world.h"
#include "json_text.h"
#include "model_arguments.h"
#include "mpi_launch.h"
#include "output_file.h"
#include "ranks.h"
#include "run_device.h"
#include "training/arguments.h"
#include "training/checkpoint.h"
#include "training/loop.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
OUT was sharded with --optimizer. The data hold every data input, whole: arrays of the inputs' shapes,
or of as many batches along one axis more; a folder of such files is taken in the order of names.
Batches are taken in turn, --accumulate of them per step, and from the beginning again after the last.
Parameters begin as the checkpoint, --init, the data file or the model has them.

A checkpoint holds whole parameters and optimizer state: --resume goes on from the latest one, over
other ranks and at another --zero too. Over the same ranks, results are those of an uninterrupted run,
to the bit.

Examples:
  autosp-onnx train out --data batches.npz --steps 100 --lr 1e-3 --output trained.npz
  autosp-onnx train out --data batches.npz --steps 100 --lr 3e-4 --warmup 10 --decay cosine
  autosp-onnx train out --data batches.npz --steps 100 --checkpoint saved --every 10 --resume
  autosp-onnx train out --data batches.npz --steps 100 --transport mpi    starts mpirun by itself)";

struct Arguments {
  TrainingRun run;
  int64_t np = 0;
  std::string transport;
  std::filesystem::path output;
  RunDevice device;
  double timeout = 60;
  int threads_per_rank = 0;
  bool json = false;
};

constexpr int64_t kMostThreads = 1024;

void print_step(const LoopStep& step) {
  fmt::print("{:>6} {:>14.8g} {:>14.8g} {:>14.8g} {:>12} {:>10.4g} {:>9.3f}\n", step.step,
             step.rank_losses.front(), *std::ranges::min_element(step.rank_losses),
             *std::ranges::max_element(step.rank_losses),
             step.gradient_norm ? fmt::format("{:.6g}", *step.gradient_norm) : "", step.rate,
             step.seconds);
  std::fflush(stdout);
}

Json to_json(const LoopStep& step) {
  Json json{{"step", step.step},
            {"loss", step.rank_losses.front()},
            {"rank_losses", step.rank_losses},
            {"learning_rate", step.rate},
            {"seconds", step.seconds}};
  if (step.gradient_norm) json["gradient_norm"] = *step.gradient_norm;
  return json;
}

Json to_json(const transforms::TrainingBytes& bytes) {
  return {{"parameters", bytes.parameters},
          {"gradients", bytes.gradients},
          {"optimizer_state", bytes.optimizer_state}};
}

// What rank 0 tells of a run.
class Report {
 public:
  explicit Report(const Arguments& arguments) : arguments_(arguments) {}

  void begin(const TrainingJob& job) {
    for (const std::string& note : job.notes) fmt::print(stderr, "note: {}\n", note);
    if (arguments_.json) return;
    fmt::print("{}: {}, zero {}, {} batches, {} per step\n",
               count_of_ranks(job.manifest.ranks.size()), job.plan.optimizer.name, job.plan.zero,
               job.batches.count(), job.plan.accumulate);
    if (job.first_step > 1) {
      fmt::print("resumed after step {} from {}\n", job.first_step - 1, job.resumed_from.string());
    }
    fmt::print("{:>6} {:>14} {:>14} {:>14} {:>12} {:>10} {:>9}\n", "step", "loss", "least rank",
               "most rank", "gradient", "rate", "seconds");
  }

  void step(const LoopStep& step) {
    if (!not_finite_since_ && !std::isfinite(step.rank_losses.front())) {
      not_finite_since_ = step.step;
      fmt::print(stderr, "note: the loss is not finite from step {} on\n", step.step);
    }
    if (arguments_.json) {
      steps_.push_back(to_json(step));
    } else {
      print_step(step);
    }
  }

  void end(const TrainingJob& job, const LoopResult& result) {
    const std::vector<transforms::TrainingBytes>& held = result.held;
    if (arguments_.json) {
      Json ranks = Json::array();
      for (size_t k = 0; k < held.size(); ++k) {
        const onnx_io::ManifestBytes& planned = job.manifest.training->bytes[k];
        ranks.push_back({{"rank", k},
                         {"planned_bytes",
                          to_json(transforms::TrainingBytes{planned.parameters, planned.gradients,
                                                            planned.optimizer_state})},
                         {"measured_bytes", to_json(held[k])},
                         {"arena_bytes", result.arenas[k]}});
      }
      fmt::print("{}\n",
                 json_text(Json{{"zero", job.plan.zero}, {"steps", steps_}, {"ranks", ranks}}));
      return;
    }
    fmt::print("{:>6} {:>14} {:>14} {:>14} {:>14}\n", "rank", "parameters", "gradients", "state",
               "all in arena");
    for (size_t k = 0; k < held.size(); ++k) {
      fmt::print("{:>6} {:>14} {:>14} {:>14} {:>14}\n", k, text(held[k].parameters),
                 text(held[k].gradients), text(held[k].optimizer_state), text(result.arenas[k]));
    }
    if (!arguments_.output.empty()) fmt::print("wrote {}\n", arguments_.output.string());
  }

 private:
  static std::string text(int64_t bytes) { return format_bytes(static_cast<double>(bytes)); }

  const Arguments& arguments_;
  Json steps_ = Json::array();
  std::optional<int64_t> not_finite_since_;
};

// The loop of one rank; rank 0 reports, and writes what is to be written. `state`: as run_loop()
// has it.
void train_rank(const TrainingJob& job, executor::Arrays state, const TrainingRun& run,
                const Arguments& arguments, Report& report, executor::Communicator& communicator,
                int workers) {
  const bool first = communicator.rank() == 0;
  if (first) report.begin(job);
  const LoopResult result = run_loop(job, std::move(state), run, communicator, workers,
                                     !arguments.output.empty(), [&](const LoopStep& step) {
                                       if (first) report.step(step);
                                     });
  if (!first) return;
  if (!arguments.output.empty()) {
    write_output_file(arguments.output, [&](const std::filesystem::path& path) {
      executor::write_npz(path, result.parameters);
    });
  }
  report.end(job, result);
  print_notices(result.notices);
}

void prepare_outputs(const Arguments& arguments, const TrainingJob& job) {
  check_output_files({{"--output", arguments.output}},
                     {{"--data", arguments.run.data}, {"--init", arguments.run.initial}},
                     arguments.run.folder, job.manifest);
  if (!arguments.run.checkpoint.empty()) make_checkpoint_folder(arguments.run.checkpoint);
}

// What only the CPU's executor does.
void check_device(const Arguments& arguments) {
  if (!arguments.run.overlap || arguments.device.name == "cpu") return;
  throw Error("--overlap is given, which is of --device cpu")
      .note("on a device, collectives always run beside computations")
      .help("leave it out");
}

// With what ranks run on.
TrainingRun run_on_device(const Arguments& arguments) {
  TrainingRun run = arguments.run;
  run.backend = open_device(arguments.device);
  run.fuse = arguments.device.fuse;
  return run;
}

int train_in_threads(const Arguments& arguments) {
  const TrainingRun run = run_on_device(arguments);
  TrainingJob job = prepare(run, arguments.np);
  prepare_outputs(arguments, job);
  const int ranks = static_cast<int>(job.manifest.ranks.size());
  const int workers = arguments.threads_per_rank > 0 ? arguments.threads_per_rank
                                                     : executor::default_blas_threads(ranks);
  executor::set_blas_threads(workers);
  Report report(arguments);
  std::vector<executor::Arrays> states(job.manifest.ranks.size(), job.state);
  job.state.clear();
  executor::run_world(ranks, arguments.timeout,
                      [&](int rank, executor::Communicator& communicator) {
                        train_rank(job, std::move(states[static_cast<size_t>(rank)]), run,
                                   arguments, report, communicator, workers);
                      });
  return 0;
}

int train_as_process(executor::MpiSession& session, const Arguments& arguments) {
  TrainingRun run;
  std::optional<TrainingJob> job;
  std::optional<Failure> problem;
  try {
    refuse_threads_under_mpirun(arguments.transport, session);
    if (arguments.run.overlap) executor::check_overlap(session);
    run = run_on_device(arguments);
    job = prepare(run, session.size());
    if (session.rank() == 0) prepare_outputs(arguments, *job);
  } catch (...) {
    problem = current_failure();
  }
  agree_to_start(session, problem);
  const int workers = arguments.threads_per_rank > 0 ? arguments.threads_per_rank : session.cores();
  executor::set_blas_threads(workers);
  executor::Communicator& communicator = session.communicator(arguments.timeout);
  check_same_job(*job, run, communicator);
  Report report(arguments);
  train_rank(*job, std::exchange(job->state, {}), run, arguments, report, communicator, workers);
  return 0;
}

[[noreturn]] void start_processes(const Arguments& arguments) {
  open_device(arguments.device);                                 // its errors once, and clearer
  const TrainingJob job = prepare(arguments.run, arguments.np);  // likewise
  const TrainingRun& run = arguments.run;
  std::vector<std::string> words = {"train",
                                    run.folder.string(),
                                    "--transport",
                                    "mpi",
                                    "--data",
                                    run.data.string(),
                                    "--steps",
                                    std::to_string(run.steps),
                                    "--timeout",
                                    fmt::format("{}", arguments.timeout),
                                    "--threads-per-rank",
                                    std::to_string(arguments.threads_per_rank)};
  add_words(run.rate, words);
  const auto pass_on = [&](const char* option, const std::string& value) {
    if (!value.empty()) words.insert(words.end(), {option, value});
  };
  pass_on("--init", run.initial.string());
  pass_on("--checkpoint", run.checkpoint.string());
  if (run.every > 0) pass_on("--every", std::to_string(run.every));
  pass_on("--output", arguments.output.string());
  std::ranges::copy(words_of(arguments.device), std::back_inserter(words));
  if (run.resume) words.emplace_back("--resume");
  if (run.overlap) words.emplace_back("--overlap");
  if (arguments.json) words.emplace_back("--json");
  start_mpirun(static_cast<int64_t>(job.manifest.ranks.size()), words);
}

int run(const Arguments& arguments) {
  check_device(arguments);
  executor::restart_with_fast_openblas();
  const int started = executor::mpi_processes();
  const bool mpi = arguments.transport.empty() ? started > 0 : arguments.transport == "mpi";
  if (started > 1 || (mpi && started > 0)) {
    return run_as_rank(
        [&](executor::MpiSession& session) { return train_as_process(session, arguments); });
  }
  if (mpi) start_processes(arguments);
  return train_in_threads(arguments);
}

}  // namespace

void add_train(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("train", "Trains a sharded model on this machine");
  command->footer(kFooter);
  TrainingRun& run_options = arguments->run;
  command->add_option("folder", run_options.folder, "What 'shard --optimizer' wrote")
      ->required()
      ->type_name("OUT");
  command->add_option("--data", run_options.data, "Batches: an .npz file, or a folder of such")
      ->required()
      ->type_name("FILE");
  command->add_option("--steps", run_options.steps, "Updates in all, those before --resume too")
      ->required()
      ->check(at_least_one())
      ->type_name("N");
  add_learning_rate_options(*command, run_options.rate);
  command->add_option("--init", run_options.initial, "Parameters to begin with")->type_name("NPZ");
  command
      ->add_option("--checkpoint", run_options.checkpoint,
                   "Folder of checkpoints; one is written after the last step")
      ->type_name("DIR");
  command->add_option("--every", run_options.every, "Steps between checkpoints")
      ->check(at_least_one())
      ->type_name("K");
  command->add_flag("--resume", run_options.resume, "Goes on from the latest checkpoint, if any");
  command->add_option("--output", arguments->output, "Where to write the trained parameters")
      ->type_name("NPZ");
  add_launch_options(*command, arguments->np, arguments->transport);
  add_run_device_options(*command, arguments->device);
  add_overlap_option(*command, run_options.overlap);
  add_timeout_option(*command, arguments->timeout);
  command
      ->add_option("--threads-per-rank", arguments->threads_per_rank,
                   "Threads of a rank's kernels; 0: the cores divided by the ranks")
      ->check(at_most(kMostThreads))
      ->type_name("N")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Prints the report as JSON");
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli
