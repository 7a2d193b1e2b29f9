#include "training/loop.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <span>
#include <sstream>

#include "base/error.h"
#include "batch_stamp.h"
#include "feeds.h"
#include "signature.h"
#include "training/checkpoint.h"
#include "training/session.h"
#include "training/shards.h"

namespace autosp::cli {

using executor::Arrays;
using ir::Tensor;

namespace {

void check_ranks(const TrainingRun& run, const onnx_io::Manifest& manifest, int64_t started) {
  const auto ranks = static_cast<int64_t>(manifest.ranks.size());
  if (started == 0 || started == ranks) return;
  throw Error("'{}' is sharded over {} ranks, but {} are to run", run.folder.string(), ranks,
              started)
      .note("every rank runs a graph of its own")
      .help(fmt::format("run it with {} ranks, or shard the model again", ranks));
}

void check_every(const TrainingRun& run) {
  if (!run.checkpoint.empty() || (run.every == 0 && !run.resume)) return;
  throw Error("{} is given without --checkpoint", run.resume ? "--resume" : "--every")
      .note("checkpoints are written to, and read from, the folder that --checkpoint names")
      .help("add --checkpoint DIR");
}

// Checkpoints of two runs in one folder would be taken for those of one.
void check_folder(const TrainingRun& run) {
  if (run.checkpoint.empty() || run.resume) return;
  const auto latest = latest_checkpoint_file(run.checkpoint);
  if (!latest) return;
  throw Error("'{}' holds checkpoints of another run", run.checkpoint.string())
      .note(fmt::format("the latest is '{}', and --resume is not given", latest->string()))
      .help("add --resume to go on from it, or give another folder with --checkpoint");
}

// The array of a parameter, from the first of these that has it.
Tensor find_parameter(const onnx_io::ManifestInput& input,
                      std::initializer_list<const Arrays*> sources) {
  for (const Arrays* arrays : sources) {
    const auto found = arrays->find(input.name);
    if (found == arrays->end()) continue;
    Tensor fed = as_fed(found->second, input.type.dtype);
    if (fed.type() == input.type) return fed;
    throw Error("parameter '{}' is {}, not {}", input.name, ir::to_string(found->second.type()),
                ir::to_string(input.type))
        .note("as it is given by --init, the data or the checkpoint")
        .help("give the parameters of this model");
  }
  throw Error("parameter '{}' {} has no value to begin with", input.name, ir::to_string(input.type))
      .note(
          "neither --init nor the data has an array of that name, and the model takes it as input")
      .help("give the parameters with --init NPZ");
}

// "'a', 'b', 'c' and 4 more".
std::string first_of(const std::vector<std::string>& names) {
  constexpr size_t kListed = 3;
  std::string text;
  for (size_t k = 0; k < std::min(kListed, names.size()); ++k) {
    text += fmt::format("{}'{}'", k == 0 ? "" : ", ", names[k]);
  }
  if (names.size() > kListed) text += fmt::format(" and {} more", names.size() - kListed);
  return text;
}

// Names of --init that mean something: inputs, what a checkpoint or a feed file holds besides.
bool is_known(const std::string& name, const std::set<std::string>& inputs) {
  if (inputs.contains(name) || name == kStepArray || name == kStampName) return true;
  const size_t slash = name.find('/');  // optimizer state
  return slash != std::string::npos && inputs.contains(name.substr(slash + 1));
}

// --init may give some of the parameters, and hold more than these; but not another model's alone.
void check_initial(const TrainingRun& run, const Arrays& given, bool resumed, TrainingJob& job) {
  if (run.initial.empty()) return;
  std::set<std::string> inputs;
  std::vector<std::string> missing;
  size_t parameters = 0;
  for (const onnx_io::ManifestInput& input : job.manifest.inputs) {
    inputs.insert(input.name);
    if (input.role != onnx_io::InputRole::kParameter) continue;
    ++parameters;
    if (!given.contains(input.name)) missing.push_back(input.name);
  }
  std::vector<std::string> unknown;
  for (const auto& [name, tensor] : given) {
    if (!is_known(name, inputs)) unknown.push_back(name);
  }
  const std::string file = run.initial.string();
  if (missing.size() == parameters && parameters > 0) {
    throw Error("--init '{}' holds no parameter of this model", file)
        .note(unknown.empty() ? "it holds no array that could be one"
                              : fmt::format("it holds {}", first_of(unknown)))
        .note(fmt::format("the model's parameters are {}", first_of(missing)))
        .help("give arrays by the names of the model's parameters (without prefixes as 'module.')");
  }
  if (!unknown.empty()) {
    job.notes.push_back(fmt::format("of --init '{}', no parameter of this model, and not used: {}",
                                    file, first_of(unknown)));
  }
  if (missing.empty() || resumed) return;
  job.notes.push_back(fmt::format(
      "--init '{}' holds {} of {} parameters; these begin as the data or the model have them: {}",
      file, parameters - missing.size(), parameters, first_of(missing)));
}

void load_state(const TrainingRun& run, TrainingJob& job) {
  std::optional<Checkpoint> checkpoint;
  if (run.resume) checkpoint = latest_checkpoint(run.checkpoint);
  if (checkpoint && checkpoint->step > run.steps) {
    throw Error("'{}' is of step {}, but only {} are asked for", checkpoint->file.string(),
                checkpoint->step, run.steps)
        .note("--steps counts those before --resume too")
        .help("ask for more steps, or give another folder with --checkpoint");
  }
  const Arrays saved = checkpoint ? checkpoint->arrays : Arrays();
  const Arrays given = run.initial.empty() ? Arrays() : executor::read_npz(run.initial);
  check_initial(run, given, checkpoint.has_value(), job);
  const Arrays initial = with_initial_parameters(run.folder, {});
  std::map<std::string, const onnx_io::ManifestInput*> inputs;
  for (const onnx_io::ManifestInput& input : job.manifest.inputs) inputs[input.name] = &input;
  for (const transforms::TrainedParameter& parameter : job.plan.parameters) {
    if (checkpoint && !saved.contains(parameter.name)) {
      throw Error("'{}' has no parameter '{}'", checkpoint->file.string(), parameter.name)
          .note("a checkpoint holds every parameter that is trained")
          .help("resume with the model that wrote the checkpoint");
    }
    job.state[parameter.name] = find_parameter(*inputs.at(parameter.name),
                                               {&saved, &given, &job.batches.others(), &initial});
    for (const std::string& state : transforms::state_names(job.plan, parameter.type.dtype)) {
      const std::string name = whole_state_name(state, parameter.name);
      const auto found = saved.find(name);
      if (found == saved.end()) {
        if (!checkpoint || state == transforms::kMaster) continue;
        throw Error("'{}' has no '{}'", checkpoint->file.string(), name)
            .note(fmt::format("{} keeps it for every parameter", job.plan.optimizer.name))
            .help(
                "resume with the optimizer that wrote the checkpoint, or give its parameters with "
                "--init");
      }
      const ir::Type type{transforms::update_dtype(parameter.type.dtype), parameter.type.shape};
      if (found->second.type() != type) {
        throw Error("'{}' holds '{}' as {}, not {}", checkpoint->file.string(), name,
                    ir::to_string(found->second.type()), ir::to_string(type))
            .note("it is a state of the optimizer, kept for every element of the parameter")
            .help("resume from a checkpoint of this model");
      }
      job.state[name] = found->second;
    }
    inputs.erase(parameter.name);
  }
  for (const auto& [name, input] : inputs) {
    if (input->role != onnx_io::InputRole::kParameter) continue;
    job.frozen[name] = find_parameter(*input, {&given, &job.batches.others(), &initial});
  }
  if (!checkpoint) return;
  job.first_step = checkpoint->step + 1;
  job.resumed_from = checkpoint->file;
}

// 32 bits of a hash, which a double holds.
class Digest {
 public:
  Digest& add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) {
      hash_ = (hash_ ^ static_cast<uint64_t>(byte)) * 0x100000001b3;
    }
    return *this;
  }
  void add(const std::string& name, const ir::Tensor& array) {
    add(std::as_bytes(std::span(name))).add(array.bytes());
  }
  double value() const { return static_cast<double>(hash_ >> 32); }

 private:
  uint64_t hash_ = 0xcbf29ce484222325;
};

double digest(const std::string& text) {
  return Digest().add(std::as_bytes(std::span(text))).value();
}

double digest(const Arrays& arrays) {
  Digest digest;
  for (const auto& [name, array] : arrays) digest.add(name, array);
  return digest.value();
}

// Every rank computes all parameters (up to zero 2) from the same sums: to the bit.
void check_replicas(RankTrainer& trainer, executor::Communicator& communicator) {
  Digest own;
  trainer.for_each_parameter(
      [&](const std::string& name, const ir::Tensor& array) { own.add(name, array); });
  const std::vector<double> digests = gather_numbers({own.value()}, "replicas", communicator);
  for (size_t k = 1; k < digests.size(); ++k) {
    AUTOSP_CHECK(digests[k] == digests[0], "ranks 0 and {} hold different parameters", k);
  }
}

}  // namespace

namespace {

std::vector<int> everyone(const executor::Communicator& communicator) {
  std::vector<int> group(static_cast<size_t>(communicator.size()));
  std::iota(group.begin(), group.end(), 0);
  return group;
}

// Every rank's lines, on every rank; all call it together.
std::set<std::string> gather_lines(const std::set<std::string>& own, const std::string& what,
                                   executor::Communicator& communicator) {
  if (communicator.size() == 1) return own;
  std::string text;
  for (const std::string& line : own) text += line + '\n';
  std::vector<int64_t> sizes;
  for (const double size : gather_numbers({static_cast<double>(text.size())}, what, communicator)) {
    sizes.push_back(static_cast<int64_t>(size));
  }
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  std::string all(static_cast<size_t>(total), '\0');
  communicator.all_gather({what, "AllGather", everyone(communicator), ir::DataType::kUInt8},
                          {text.data(), {static_cast<int64_t>(text.size())}}, {all.data(), {total}},
                          0, sizes);
  std::set<std::string> lines;
  std::istringstream stream(all);
  for (std::string line; std::getline(stream, line);) lines.insert(line);
  return lines;
}

}  // namespace

std::vector<double> gather_numbers(const std::vector<double>& own, const std::string& what,
                                   executor::Communicator& communicator) {
  const auto ranks = static_cast<size_t>(communicator.size());
  std::vector<double> all(own.size() * ranks);
  if (ranks == 1) return own;
  const auto count = static_cast<int64_t>(own.size());
  communicator.all_gather(
      {what, "AllGather", everyone(communicator), ir::DataType::kFloat64}, {own.data(), {count}},
      {all.data(), {count * static_cast<int64_t>(ranks)}}, 0, std::vector<int64_t>(ranks, count));
  return all;
}

void check_same_job(const TrainingJob& job, const TrainingRun& run,
                    executor::Communicator& communicator) {
  const std::pair<const char*, double> facts[] = {
      {"sharded model", digest(plan_signature(job.manifest))},
      {"--steps", static_cast<double>(run.steps)},
      {"--lr", run.rate.peak},
      {"--warmup", static_cast<double>(run.rate.warmup)},
      {"--decay", digest(run.rate.decay)},
      {"--decay-steps", static_cast<double>(run.rate.decay_steps)},
      {"--lr-end", run.rate.end},
      {"--every", static_cast<double>(run.every)},
      {"--checkpoint", digest(run.checkpoint.string())},
      {"--fuse", static_cast<double>(run.fuse)},
      {"first step", static_cast<double>(job.first_step)},
      {"parameters and optimizer state", digest(job.state)},
      {"number of batches", static_cast<double>(job.batches.count())},
      {"first batch", digest(whole_batch(job, (job.first_step - 1) * job.plan.accumulate))},
  };
  std::vector<double> own;
  for (const auto& [what, value] : facts) own.push_back(value);
  const std::vector<double> all = gather_numbers(own, "what is to be trained", communicator);
  for (size_t k = 0; k < all.size(); ++k) {
    if (all[k] == own[k % own.size()]) continue;
    throw Error("ranks {} and {} are to train differently: {}", communicator.rank(), k / own.size(),
                facts[k % own.size()].first)
        .note("every rank reads model, parameters, data and checkpoints by itself")
        .help("start all ranks with the same options, and let their paths lead to the same files");
  }
}

TrainingJob prepare(const TrainingRun& run, int64_t started) {
  const onnx_io::Manifest manifest = onnx_io::read_manifest(run.folder);
  training_plan(manifest, run.folder.string());
  return prepare(run, started, Batches(run.data, manifest));
}

TrainingJob prepare(const TrainingRun& run, int64_t started, Batches batches) {
  check_every(run);
  check(run.rate, run.steps);
  check_folder(run);
  onnx_io::Manifest manifest = onnx_io::read_manifest(run.folder);
  check_ranks(run, manifest, started);
  transforms::TrainingPlan plan = training_plan(manifest, run.folder.string());
  TrainingJob job{.manifest = std::move(manifest),
                  .plan = std::move(plan),
                  .batches = std::move(batches),
                  .state = {},
                  .frozen = {}};
  load_state(run, job);
  return job;
}

Arrays whole_batch(const TrainingJob& job, int64_t batch) {
  Arrays whole = job.batches.at(static_cast<size_t>(batch));
  whole.insert(job.frozen.begin(), job.frozen.end());
  if (job.manifest.random && !job.manifest.random->step_input.empty()) {
    set_step(job.manifest, batch, whole);
  }
  return whole;
}

Arrays batch_feeds(const TrainingJob& job, int64_t batch, int64_t rank) {
  return data_feeds(job.manifest, whole_batch(job, batch), rank);
}

LoopResult run_loop(const TrainingJob& job, Arrays state, const TrainingRun& run,
                    executor::Communicator& communicator, int workers, bool wants_parameters,
                    const std::function<void(const LoopStep&)>& report) {
  const int rank = communicator.rank();
  RankTrainer trainer(load_training_graphs(run.folder, job.manifest, job.plan, rank), job.plan,
                      job.manifest, run.folder, communicator,
                      {workers, run.overlap, run.fuse, run.backend.get()});
  trainer.load(state);
  state.clear();
  for (int64_t step = job.first_step; step <= run.steps; ++step) {
    std::vector<Arrays> micro_batches;
    for (int64_t m = 0; m < job.plan.accumulate; ++m) {
      micro_batches.push_back(batch_feeds(job, (step - 1) * job.plan.accumulate + m, rank));
    }
    const double rate = run.rate.at(step, run.steps);
    const StepReport done = trainer.step(micro_batches, rate, step);
    report({.step = step,
            .rank_losses = gather_numbers({done.loss}, "losses", communicator),
            .gradient_norm = done.gradient_norm,
            .rate = rate,
            .seconds = done.seconds});
    if (run.checkpoint.empty()) continue;
    if (step != run.steps && (run.every == 0 || step % run.every != 0)) continue;
    Arrays whole = trainer.whole_state(rank == 0);
    if (rank == 0) write_checkpoint(run.checkpoint, step, std::move(whole));
  }
  check_replicas(trainer, communicator);
  LoopResult result;
  result.notices = gather_lines(trainer.notices(), "notices", communicator);
  if (wants_parameters) result.parameters = trainer.whole_parameters(rank == 0);
  const transforms::TrainingBytes held = trainer.held_bytes();
  const std::vector<double> all = gather_numbers(
      {static_cast<double>(held.parameters), static_cast<double>(held.gradients),
       static_cast<double>(held.optimizer_state), static_cast<double>(trainer.arena_bytes())},
      "held bytes", communicator);
  for (size_t k = 0; k < all.size(); k += 4) {
    result.held.push_back({static_cast<int64_t>(all[k]), static_cast<int64_t>(all[k + 1]),
                           static_cast<int64_t>(all[k + 2])});
    result.arenas.push_back(static_cast<int64_t>(all[k + 3]));
  }
  return result;
}

}  // namespace autosp::cli
