// autosp-onnx feed OUT --feed batch.npz -o DIR: a whole batch, cut for the ranks.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "batch_stamp.h"
#include "command.h"
#include "feeds.h"
#include "interruption.h"
#include "json_text.h"
#include "output_file.h"
#include "ranks.h"
#include "signature.h"

namespace autosp::cli {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
Writes DIR/rank_<k>.npz, which holds rank k's slices of the inputs that the batch has, as manifest.json says.
Parameters may be left out of the batch, and given to 'run' whole. Each file says which rank and batch it is
of, so that a run whose ranks are fed from different batches is refused.

Examples:
  autosp-onnx feed out --feed batch.npz -o fed
  autosp-onnx run out --feed-rank 'fed/rank_{rank}.npz' --feed parameters.npz)";

struct Arguments {
  fs::path folder;
  fs::path feed;
  fs::path out;
  bool json = false;
};

// Inputs of the batch; every data input must be there.
executor::Arrays read_batch(const Arguments& arguments, const onnx_io::Manifest& manifest) {
  const std::string where = fmt::format("'{}'", arguments.feed.string());
  const executor::Arrays given = executor::read_npz(arguments.feed);
  onnx_io::Manifest wanted = manifest;
  std::erase_if(wanted.inputs, [&](const onnx_io::ManifestInput& input) {
    return input.role == onnx_io::InputRole::kParameter && !given.contains(input.name);
  });
  return select_feeds(wanted, given, where);
}

// A folder inside the output's that goes with this object.
class Workshop {
 public:
  explicit Workshop(const fs::path& around) {
    std::string pattern = (around / ".feed.XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) {
      throw Error("cannot write in '{}': {}", around.string(), std::strerror(errno))
          .note("the files of the ranks are made there and appear together")
          .help("give a folder with -o that you may write to");
    }
    path_ = pattern;
  }
  ~Workshop() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Workshop(const Workshop&) = delete;
  Workshop& operator=(const Workshop&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void make_folder(const fs::path& folder) {
  std::error_code code;
  fs::create_directories(folder, code);
  if (!code && fs::is_directory(folder)) return;
  throw Error("'{}' cannot be made: {}", folder.string(),
              code ? code.message() : "it is not a folder")
      .note("a file for each rank is to be written there")
      .help("give the name of a folder with -o");
}

std::string file_name(int64_t rank) { return fmt::format("rank_{}.npz", rank); }

// Nothing appears before everything is written.
void write_files(const Arguments& arguments, const onnx_io::Manifest& manifest,
                 const executor::Arrays& batch) {
  const HeldSignals signals;
  const Workshop workshop(arguments.out);
  BatchStamp stamp{
      .rank = 0, .plan = plan_signature(manifest), .whole = whole_checksums(manifest, batch)};
  for (const onnx_io::ManifestRank& rank : manifest.ranks) {
    HeldSignals::check();
    executor::Arrays cut;
    for (const onnx_io::ManifestInput& input : manifest.inputs) {
      if (!batch.contains(input.name)) continue;
      cut[input.name] = rank_feed(input, batch.at(input.name), rank.rank);
    }
    stamp.rank = rank.rank;
    cut[kStampName] = encode(stamp);
    executor::write_npz(workshop.path() / file_name(rank.rank), cut);
  }
  for (const onnx_io::ManifestRank& rank : manifest.ranks) {
    fs::rename(workshop.path() / file_name(rank.rank), arguments.out / file_name(rank.rank));
  }
}

int run(const Arguments& arguments) {
  const onnx_io::Manifest manifest =
      at_given_length(onnx_io::read_manifest(arguments.folder), {}, arguments.feed);
  std::error_code code;
  if (arguments.out.empty() || fs::equivalent(arguments.out, arguments.folder, code)) {
    throw Error("-o '{}' is no folder of its own", arguments.out.string())
        .note("the folder of the sharded model holds what 'shard' wrote and nothing else")
        .help("give another folder with -o, for example -o fed");
  }
  const executor::Arrays batch = read_batch(arguments, manifest);
  make_folder(arguments.out);
  std::vector<OutputFile> outputs;
  for (const onnx_io::ManifestRank& rank : manifest.ranks) {
    outputs.push_back({"-o", arguments.out / file_name(rank.rank)});
  }
  check_output_files(outputs, {{"--feed", arguments.feed}}, arguments.folder, manifest);
  write_files(arguments, manifest, batch);
  if (arguments.json) {
    Json files = Json::array();
    for (const OutputFile& output : outputs) files.push_back(output.path.string());
    fmt::print("{}\n", json_text(Json{{"files", std::move(files)}, {"inputs", batch.size()}}));
  } else {
    fmt::print("{}, {} inputs each: wrote {}\n", count_of_ranks(manifest.ranks.size()),
               batch.size(), (arguments.out / "rank_*.npz").string());
  }
  return 0;
}

}  // namespace

void add_feed(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("feed", "Cuts a batch into what each rank is fed");
  command->footer(kFooter);
  command->add_option("folder", arguments->folder, "What 'shard' wrote")
      ->required()
      ->type_name("OUT");
  command
      ->add_option("--feed", arguments->feed,
                   "The batch: graph inputs, whole; parameters may be missing")
      ->required()
      ->type_name("NPZ");
  command->add_option("-o,--output", arguments->out, "The folder to write the files to")
      ->required()
      ->type_name("DIR");
  command->add_flag("--json", arguments->json, "Prints the names of the files as JSON");
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli
