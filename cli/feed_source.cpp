#include "feed_source.h"

#include <algorithm>

#include "base/error.h"
#include "feeds.h"
#include "onnx/manifest_length.h"
#include "signature.h"

namespace autosp::cli {

namespace {

constexpr std::string_view kPlace = "{rank}";

ir::Type local_type(const onnx_io::ManifestInput& input, int64_t rank) {
  if (input.slices.empty()) return input.type;
  return {input.type.dtype, input.slices[static_cast<size_t>(rank)].extent};
}

void check_arguments(const FeedFiles& arguments) {
  if (arguments.whole.empty() && arguments.by_rank.empty()) {
    throw Error("neither --feed nor --feed-rank names the graph inputs")
        .note(
            "--feed takes whole inputs, of which every rank takes its slice; --feed-rank a file "
            "for each rank")
        .help("for example: --feed inputs.npz, or --feed-rank 'fed/rank_{rank}.npz'");
  }
  if (!arguments.by_rank.empty() && arguments.by_rank.find(kPlace) == std::string::npos) {
    throw Error("--feed-rank '{}' names one file for all ranks", arguments.by_rank)
        .note("{rank} in it stands for the number of the rank")
        .help("for example: --feed-rank 'fed/rank_{rank}.npz'; --feed takes whole inputs");
  }
}

void check_stamp(const BatchStamp& stamp, const onnx_io::Manifest& manifest, int64_t rank,
                 const std::string& where) {
  if (stamp.rank != rank) {
    throw Error("{} was cut for rank {}, and is given to rank {}", where, stamp.rank, rank)
        .note("slices of different ranks may be of one shape")
        .help("give the files in the order of the ranks");
  }
  if (stamp.plan != plan_signature(manifest)) {
    throw Error("{} was cut for another model, or for another plan of it", where)
        .note("ranks of other plans take other slices")
        .help("cut the batch again with 'autosp-onnx feed', for this folder");
  }
}

std::filesystem::path file_of(const std::string& pattern, int64_t rank) {
  std::string path = pattern;
  for (size_t at = path.find(kPlace); at != std::string::npos; at = path.find(kPlace)) {
    path.replace(at, kPlace.size(), std::to_string(rank));
  }
  return path;
}

}  // namespace

std::vector<InputFile> files_of(const FeedFiles& arguments, const onnx_io::Manifest& manifest) {
  std::vector<InputFile> files = {{"--feed", arguments.whole}};
  if (arguments.by_rank.empty()) return files;
  for (const onnx_io::ManifestRank& rank : manifest.ranks) {
    files.push_back({"--feed-rank", file_of(arguments.by_rank, rank.rank)});
  }
  return files;
}

onnx_io::Manifest at_length_of(const onnx_io::Manifest& manifest, const FeedFiles& arguments,
                               int64_t rank) {
  if (!manifest.open_length) return manifest;
  check_arguments(arguments);
  if (arguments.by_rank.empty()) return at_given_length(manifest, {}, arguments.whole);
  // A file of its own has the rank's parts, and may leave whole inputs to the other.
  onnx_io::Manifest local = manifest;
  for (onnx_io::ManifestInput& input : local.inputs) input.type = local_type(input, rank);
  for (onnx_io::ManifestGrowth& growth : local.open_length->inputs) {
    if (!growth.slices.empty()) growth.shape = growth.slices[static_cast<size_t>(rank)].extent;
  }
  std::map<std::string, ir::Shape> own;
  for (const auto& [name, tensor] : executor::read_npz(file_of(arguments.by_rank, rank))) {
    own[name] = tensor.shape();
  }
  const auto grows = [&](const auto& growth) { return own.contains(growth.name); };
  if (!std::ranges::any_of(local.open_length->inputs, grows) && !arguments.whole.empty()) {
    return at_given_length(manifest, {}, arguments.whole);
  }
  return onnx_io::at_length(manifest, onnx_io::length_of(local, own));
}

FeedSource::FeedSource(const onnx_io::Manifest& manifest, const FeedFiles& arguments)
    : manifest_(manifest), arguments_(arguments) {
  check_arguments(arguments);
  const executor::Arrays given = with_initial_parameters(
      arguments.folder,
      arguments.whole.empty() ? executor::Arrays() : executor::read_npz(arguments.whole));
  if (!arguments.whole.empty() || !given.empty()) {
    const std::string where = fmt::format("'{}'", arguments.whole.string());
    // With files for the ranks, it holds the rest.
    whole_ =
        by_rank() ? select_present(manifest, given, where) : select_feeds(manifest, given, where);
  }
  if (arguments.step) set_step(manifest, *arguments.step, whole_);
}

executor::Arrays FeedSource::of_rank(int64_t rank) {
  if (!by_rank()) return rank_feeds(manifest_, whole_, rank);
  const std::filesystem::path path = file_of(arguments_.by_rank, rank);
  const std::string where = fmt::format("'{}'", path.string());
  executor::Arrays own = executor::read_npz(path);
  digest_ = {};
  if (const auto stamp = own.find(kStampName); stamp != own.end()) {
    const BatchStamp found = decode(stamp->second, where);
    check_stamp(found, manifest_, rank, where);
    digest_.whole = found.whole;
  }
  // --step counts for every rank, whatever its file says.
  if (arguments_.step) set_step(manifest_, *arguments_.step, own);
  onnx_io::Manifest local = manifest_;
  for (onnx_io::ManifestInput& input : local.inputs) {
    input.type = local_type(input, rank);
    if (own.contains(input.name) || !whole_.contains(input.name)) continue;
    const onnx_io::ManifestInput& global =
        manifest_.inputs[static_cast<size_t>(&input - local.inputs.data())];
    own[input.name] = rank_feed(global, whole_.at(input.name), rank);
  }
  executor::Arrays feeds = select_feeds(local, own, where);
  for (const auto& [name, tensor] : feeds) digest_.taken[name] = checksum(tensor);
  return with_shards(manifest_, std::move(feeds), rank);
}

}  // namespace autosp::cli
