#include "feeds.h"

#include <algorithm>

#include "base/error.h"
#include "model_arguments.h"
#include "onnx/manifest_length.h"
#include "training/arguments.h"
#include "training/shards.h"

namespace autosp::cli {

namespace {

bool is_step(const onnx_io::Manifest& manifest, const onnx_io::ManifestInput& input) {
  return manifest.random && manifest.random->step_input == input.name;
}

void check_dim(const onnx_io::Manifest& manifest, const std::string& name, int64_t value) {
  const auto dim = std::ranges::find(manifest.dims, name, &onnx_io::ManifestDim::name);
  if (dim != manifest.dims.end() && dim->value == value) return;
  if (manifest.open_length && manifest.open_length->dim == name) return;
  Error error("--dim {}={}: these graphs are not for that", name, value);
  error.note(
      dim == manifest.dims.end()
          ? fmt::format("'{}' has no symbolic dimension '{}'", manifest.model_name, name)
          : fmt::format("'{}' was sharded for {}={}", manifest.model_name, name, dim->value));
  throw error.help(manifest.open_length
                       ? fmt::format("--dim {}=N takes {}", manifest.open_length->dim,
                                     onnx_io::allowed_lengths(*manifest.open_length))
                       : fmt::format("shard the model again with --dim {}={}, or, for all lengths, "
                                     "with --dim {}=dynamic",
                                     name, value, name));
}

}  // namespace

onnx_io::Manifest at_given_length(const onnx_io::Manifest& manifest,
                                  const std::vector<std::string>& dims,
                                  const executor::Arrays* given) {
  const auto values = parse_counts(dims, "--dim");
  for (const auto& [name, value] : values) check_dim(manifest, name, value);
  if (!manifest.open_length) return manifest;
  const auto asked = values.find(manifest.open_length->dim);
  if (asked != values.end()) return onnx_io::at_length(manifest, asked->second);
  if (given == nullptr) return manifest;
  std::map<std::string, ir::Shape> shapes;
  for (const auto& [name, tensor] : *given) shapes[name] = tensor.shape();
  return onnx_io::at_length(manifest, onnx_io::length_of(manifest, shapes));
}

onnx_io::Manifest at_given_length(const onnx_io::Manifest& manifest,
                                  const std::vector<std::string>& dims,
                                  const std::filesystem::path& feed) {
  if (!manifest.open_length || feed.empty()) return at_given_length(manifest, dims, nullptr);
  const executor::Arrays given = executor::read_npz(feed);
  return at_given_length(manifest, dims, &given);
}

ir::Tensor as_fed(const ir::Tensor& given, ir::DataType wanted) {
  if (given.dtype() != ir::DataType::kFloat32 || wanted != ir::DataType::kBFloat16) return given;
  ir::Tensor result({ir::DataType::kBFloat16, given.shape()});
  auto* bits = reinterpret_cast<uint16_t*>(result.mutable_bytes());
  std::ranges::transform(given.values<float>(), bits, ir::float_to_bfloat16);
  return result;
}

executor::Arrays select_feeds(const onnx_io::Manifest& manifest, const executor::Arrays& given,
                              const std::string& where) {
  executor::Arrays feeds;
  std::vector<std::string> problems;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : given) names.push_back(name);
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    const auto found = given.find(input.name);
    if (found == given.end() && is_step(manifest, input)) {
      set_step(manifest, 0, feeds);
    } else if (found == given.end()) {
      const std::string near = nearest_name(input.name, names);
      problems.push_back(fmt::format("'{}' {} is missing{}", input.name, ir::to_string(input.type),
                                     near.empty() ? "" : fmt::format(" (it has '{}')", near)));
    } else if (ir::Tensor fed = as_fed(found->second, input.type.dtype); fed.type() != input.type) {
      problems.push_back(fmt::format("'{}' is {}, not {}", input.name,
                                     ir::to_string(found->second.type()),
                                     ir::to_string(input.type)));
    } else {
      feeds[input.name] = std::move(fed);
    }
  }
  if (problems.empty()) return feeds;
  Error error("{} does not fit the model: {}", where, problems.front());
  constexpr size_t kNamed = 4;
  for (size_t k = 1; k < std::min(problems.size(), kNamed); ++k) error.note(problems[k]);
  if (problems.size() > kNamed)
    error.note(fmt::format("{} more inputs do not fit either", problems.size() - kNamed));
  if (problems.size() == 1) error.note("the manifest lists what the model takes");
  throw error.help(
      "give every graph input, whole (ranks take their slices), with its shape and type");
}

void set_step(const onnx_io::Manifest& manifest, int64_t step, executor::Arrays& feeds) {
  if (!manifest.random || manifest.random->step_input.empty()) {
    throw Error("--step {}: the model draws nothing at random", step)
        .note("the number of the step decides random numbers and nothing else")
        .help("leave --step out");
  }
  feeds[manifest.random->step_input] =
      ir::Tensor::from_values<int64_t>({}, std::vector<int64_t>{step});
}

executor::Arrays select_present(const onnx_io::Manifest& manifest, const executor::Arrays& given,
                                const std::string& where) {
  onnx_io::Manifest present = manifest;
  std::erase_if(present.inputs, [&](const auto& input) { return !given.contains(input.name); });
  return select_feeds(present, given, where);
}

ir::Tensor rank_feed(const onnx_io::ManifestInput& input, const ir::Tensor& whole, int64_t rank) {
  if (input.slices.empty()) return whole;
  const onnx_io::ManifestSlice& slice = input.slices[static_cast<size_t>(rank)];
  return whole.block(slice.begin, slice.extent);
}

executor::Arrays with_initial_parameters(const std::filesystem::path& folder,
                                         executor::Arrays given) {
  const std::filesystem::path path = folder / kInitialFile;
  if (std::filesystem::exists(path)) given.merge(executor::read_npz(path));
  return given;
}

namespace {

// The rank's part of every input that `takes` accepts.
template <typename Takes>
executor::Arrays slices(const onnx_io::Manifest& manifest, const executor::Arrays& global,
                        int64_t rank, Takes&& takes) {
  executor::Arrays feeds;
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    if (!takes(input.name)) continue;
    feeds[input.name] = rank_feed(input, global.at(input.name), rank);
  }
  return feeds;
}

}  // namespace

executor::Arrays with_shards(const onnx_io::Manifest& manifest, executor::Arrays feeds,
                             int64_t rank) {
  if (!manifest.training || manifest.training->zero < 3) return feeds;
  const transforms::TrainingPlan plan = training_plan(manifest, "the sharded model");
  executor::Arrays shards;
  for (const transforms::Bucket& bucket : plan.buckets) {
    shards[bucket.name] =
        shard_of(plan, bucket, rank,
                 [&](const std::string& name) -> const ir::Tensor& { return feeds.at(name); });
  }
  for (const std::string& name : manifest.training->parameters) feeds.erase(name);
  feeds.merge(shards);
  return feeds;
}

executor::Arrays rank_feeds(const onnx_io::Manifest& manifest, const executor::Arrays& global,
                            int64_t rank) {
  return with_shards(manifest,
                     slices(manifest, global, rank, [](const std::string&) { return true; }), rank);
}

executor::Arrays data_feeds(const onnx_io::Manifest& manifest, const executor::Arrays& global,
                            int64_t rank) {
  const std::vector<std::string>& trained = manifest.training->parameters;
  return slices(manifest, global, rank, [&](const std::string& name) {
    return std::ranges::find(trained, name) == trained.end();
  });
}

}  // namespace autosp::cli
