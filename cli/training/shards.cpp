#include "training/shards.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "base/error.h"
#include "reference/element_types.h"

namespace autosp::cli {

using executor::Arrays;
using ir::Tensor;
using transforms::Bucket;
using transforms::BucketMember;
using transforms::TrainedParameter;
using transforms::TrainingPlan;

namespace {

struct SettingField {
  const char* name;
  double transforms::OptimizerSettings::*field;
};
constexpr SettingField kSettings[] = {
    {"momentum", &transforms::OptimizerSettings::momentum},
    {"beta1", &transforms::OptimizerSettings::beta1},
    {"beta2", &transforms::OptimizerSettings::beta2},
    {"epsilon", &transforms::OptimizerSettings::epsilon},
    {"weight_decay", &transforms::OptimizerSettings::weight_decay},
    {"clip_norm", &transforms::OptimizerSettings::clip_norm},
};

[[noreturn]] void damaged(const std::string& folder, const std::string& what) {
  throw Error("the manifest of '{}' {}", folder, what)
      .note("it says how the model is trained")
      .help("shard the model again");
}

TrainedParameter trained(const onnx_io::Manifest& manifest, const std::string& name,
                         const std::string& folder) {
  TrainedParameter parameter{.name = name, .gradient = "", .type = {}};
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    if (input.name == name) parameter.type = input.type;
  }
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    if (output.role != onnx_io::OutputRole::kGradient || output.parameter != name) continue;
    parameter.gradient = output.name;
    parameter.gradient_dtype = output.type.dtype;
  }
  if (parameter.gradient.empty() || parameter.type.dtype == ir::DataType::kUndefined) {
    damaged(folder, fmt::format("trains '{}', of which it knows no input and gradient", name));
  }
  return parameter;
}

std::vector<int> everyone(int size) {
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

std::string gradient_of(const TrainedParameter& parameter) { return parameter.gradient; }

}  // namespace

TrainingPlan training_plan(const onnx_io::Manifest& manifest, const std::string& folder) {
  if (!manifest.training) {
    throw Error("'{}' has no optimizer", folder)
        .note("it was sharded without --optimizer, so there is a step, but no update after it")
        .help("shard the model again, for example with --optimizer adamw");
  }
  const onnx_io::ManifestTraining& from = *manifest.training;
  TrainingPlan plan;
  plan.optimizer.name = from.optimizer;
  transforms::find_optimizer(from.optimizer);
  for (const onnx_io::ManifestSetting& setting : from.settings) {
    for (const SettingField& field : kSettings) {
      if (setting.name == field.name) plan.optimizer.*field.field = setting.value;
    }
  }
  plan.zero = static_cast<int>(from.zero);
  plan.accumulate = from.accumulate;
  plan.ranks = static_cast<int64_t>(manifest.ranks.size());
  std::map<std::string, size_t> known;
  for (const std::string& name : from.parameters) {
    known[name] = plan.parameters.size();
    plan.parameters.push_back(trained(manifest, name, folder));
  }
  for (const onnx_io::ManifestBucket& entry : from.buckets) {
    Bucket bucket{.name = entry.name, .members = {}, .elements = 0, .cuts = entry.cuts};
    for (const std::string& name : entry.parameters) {
      if (!known.contains(name)) damaged(folder, fmt::format("has '{}' in a bucket only", name));
      bucket.members.push_back({known[name], bucket.elements});
      bucket.elements += plan.parameters[known[name]].type.num_elements();
    }
    if (bucket.members.empty() || bucket.cuts.front() != 0 ||
        bucket.cuts.back() != bucket.elements || !std::ranges::is_sorted(bucket.cuts)) {
      damaged(folder, fmt::format("cuts '{}' into shards that are not all of it", entry.name));
    }
    plan.buckets.push_back(std::move(bucket));
  }
  return plan;
}

bool is_shared_out(const onnx_io::Manifest& manifest, const std::string& parameter) {
  if (!manifest.training || manifest.training->zero < 3) return false;
  const std::vector<std::string>& trained = manifest.training->parameters;
  return std::ranges::find(trained, parameter) != trained.end();
}

Tensor shard_of(const TrainingPlan& plan, const Bucket& bucket, int64_t rank,
                const WholeArray& whole) {
  const int64_t begin = bucket.cuts[static_cast<size_t>(rank)];
  const int64_t end = bucket.cuts[static_cast<size_t>(rank) + 1];
  const ir::DataType dtype = whole(plan.parameter(bucket.members.front()).name).dtype();
  const auto size = static_cast<int64_t>(ir::element_size(dtype));
  Tensor shard(ir::Type{dtype, {end - begin}});
  for (const BucketMember& member : bucket.members) {
    const TrainedParameter& parameter = plan.parameter(member);
    const int64_t elements = parameter.type.num_elements();
    const int64_t first = std::clamp(begin - member.offset, int64_t{0}, elements);
    const int64_t last = std::clamp(end - member.offset, int64_t{0}, elements);
    if (first == last) continue;
    const Tensor& tensor = whole(parameter.name);
    std::memcpy(shard.mutable_bytes() + (member.offset + first - begin) * size,
                tensor.bytes().data() + first * size, static_cast<size_t>((last - first) * size));
  }
  return shard;
}

void cut_bucket(const TrainingPlan& plan, const Bucket& bucket, const Tensor& flat,
                const std::function<std::string(const TrainedParameter&)>& name_of,
                Arrays& arrays) {
  for (const BucketMember& member : bucket.members) {
    const TrainedParameter& parameter = plan.parameter(member);
    const int64_t begin[] = {member.offset};
    arrays[name_of(parameter)] =
        flat.block(begin, {parameter.type.num_elements()}).reshaped(parameter.type.shape);
  }
}

Tensor gather_shards(const Bucket& bucket, const Tensor& shard, const std::string& what,
                     executor::Communicator& communicator) {
  if (communicator.size() == 1) return shard;
  Tensor whole(ir::Type{shard.dtype(), {bucket.elements}});
  std::vector<int64_t> sizes;
  for (int64_t k = 0; k < communicator.size(); ++k) sizes.push_back(bucket.shard_elements(k));
  communicator.all_gather({what, "AllGather", everyone(communicator.size()), shard.dtype()},
                          {shard.bytes().data(), shard.shape()},
                          {whole.mutable_bytes(), whole.shape()}, 0, sizes);
  return whole;
}

Tensor sum_terms(const Tensor& terms, const std::string& what,
                 executor::Communicator& communicator) {
  if (communicator.size() == 1) return terms;
  Tensor sum(terms.type());
  communicator.all_reduce({what, "AllReduce", everyone(communicator.size()), terms.dtype()},
                          {terms.bytes().data(), terms.shape()},
                          {sum.mutable_bytes(), sum.shape()});
  return sum;
}

namespace {

// In rank order, as the collectives add.
Tensor sum_of(const std::vector<Arrays*>& outputs, const std::string& name) {
  Tensor sum(outputs.front()->at(name).type(), outputs.front()->at(name).bytes());
  reference::visit(reference::FloatTypes{}, sum.dtype(), [&]<typename T>(std::type_identity<T>) {
    auto* to = reinterpret_cast<T*>(sum.mutable_bytes());
    for (int64_t i = 0; i < sum.num_elements(); ++i) {
      reference::Compute<T> total = to[i];
      for (size_t k = 1; k < outputs.size(); ++k) {
        total += static_cast<reference::Compute<T>>(
            reinterpret_cast<const T*>(outputs[k]->at(name).bytes().data())[i]);
      }
      to[i] = reference::convert<T>(total);
    }
  });
  return sum;
}

Tensor joined(const Bucket& bucket, const std::vector<Arrays*>& outputs, const std::string& name) {
  const ir::DataType dtype = outputs.front()->at(name).dtype();
  Tensor whole(ir::Type{dtype, {bucket.elements}});
  std::byte* to = whole.mutable_bytes();
  for (const Arrays* rank : outputs) {
    const auto bytes = rank->at(name).bytes();
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
    to += bytes.size();
  }
  return whole;
}

}  // namespace

void name_gradients(const onnx_io::Manifest& manifest, std::vector<Arrays*> outputs) {
  if (!manifest.training || manifest.training->zero == 0) return;
  const TrainingPlan plan = training_plan(manifest, "the sharded model");
  for (const Bucket& bucket : plan.buckets) {
    const std::string name = bucket.name + ".grad";
    const Tensor whole = plan.zero == 1 ? sum_of(outputs, name) : joined(bucket, outputs, name);
    for (Arrays* rank : outputs) {
      rank->erase(name);
      cut_bucket(plan, bucket, whole, gradient_of, *rank);
    }
  }
}

void name_gradients(const onnx_io::Manifest& manifest, Arrays& outputs,
                    executor::Communicator& communicator) {
  if (!manifest.training || manifest.training->zero == 0) return;
  const TrainingPlan plan = training_plan(manifest, "the sharded model");
  for (const Bucket& bucket : plan.buckets) {
    const std::string name = bucket.name + ".grad";
    const Tensor& own = outputs.at(name);
    const Tensor whole = plan.zero == 1 ? sum_terms(own, name, communicator)
                                        : gather_shards(bucket, own, name, communicator);
    outputs.erase(name);
    cut_bucket(plan, bucket, whole, gradient_of, outputs);
  }
}

}  // namespace autosp::cli
