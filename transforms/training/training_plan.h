// What a training step keeps and where: which parameters are trained, how their gradients travel,
// and which part of parameters, gradients and optimizer state every rank holds (ZeRO).
//
//   zero  gradients leave the step as          state is        parameters are
//   0     their sum, whole, by name            whole           whole
//   1     the rank's own terms, in buckets     a shard         whole
//   2     a shard of their sum, in buckets     a shard         whole
//   3     a shard of their sum, in buckets     a shard         a shard, gathered for every use
//
// A bucket is a run of parameters of one type, flattened one after the other. All ranks of the mesh
// hold the same parameters, so a bucket is cut into as many shards as there are ranks, as even as
// can be; nothing is padded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ir/type.h"
#include "shard/layout.h"
#include "transforms/training/optimizer.h"

namespace autosp::transforms {

struct TrainedParameter {
  std::string name;
  std::string gradient;  // the graph output
  ir::Type type;
  ir::DataType gradient_dtype = ir::DataType::kUndefined;
};

struct BucketMember {
  size_t parameter = 0;  // position in TrainingPlan::parameters
  int64_t offset = 0;    // elements from the bucket's beginning
};

struct Bucket {
  std::string name;
  std::vector<BucketMember> members;
  int64_t elements = 0;
  shard::Cuts cuts;  // rank k holds elements [cuts[k], cuts[k + 1])

  int64_t shard_elements(int64_t rank) const {
    return cuts[static_cast<size_t>(rank) + 1] - cuts[static_cast<size_t>(rank)];
  }
};

struct TrainingPlan {
  OptimizerSettings optimizer;
  int zero = 0;
  int64_t accumulate = 1;  // micro-batches per update
  int64_t ranks = 1;
  std::vector<TrainedParameter> parameters;
  std::vector<Bucket> buckets;  // of gradients and, from zero 1 on, of what the ranks share out

  const TrainedParameter& parameter(const BucketMember& member) const {
    return parameters[member.parameter];
  }
  ir::DataType dtype(const Bucket& bucket) const {
    return parameter(bucket.members.front()).type.dtype;
  }
  ir::DataType gradient_dtype(const Bucket& bucket) const {
    return parameter(bucket.members.front()).gradient_dtype;
  }
};

// Gradients join the bucket of the one before while types agree and it stays within `bucket_bytes`;
// 0 gives every parameter its own. `order` lists the parameters as their gradients are made.
std::vector<Bucket> make_buckets(const std::vector<TrainedParameter>& parameters,
                                 const std::vector<size_t>& order, int64_t bucket_bytes,
                                 int64_t ranks);

// The type that states are kept and updates are computed in: float32 for 16-bit parameters, of
// which a copy in float32 is kept as well (the state kMaster).
ir::DataType update_dtype(ir::DataType parameter);
inline constexpr const char* kMaster = "master";

// What an optimizer works on as one piece: a parameter (zero 0), or a rank's shard of a bucket.
struct UpdateUnit {
  std::string name;                               // "model.norm.weight", "bucket_2"
  std::string gradient;                           // name of the value that holds its gradient
  ir::Shape shape;                                // on the rank
  ir::DataType dtype = ir::DataType::kUndefined;  // of the parameter
  ir::DataType gradient_dtype = ir::DataType::kUndefined;  // of the gradient
  size_t index = 0;                                        // of the parameter or bucket
};
std::vector<UpdateUnit> update_units(const TrainingPlan& plan, int64_t rank);

// The states kept for a unit, kMaster first where there is one. Their values are called
// "<unit>.<state>", in the update's graph and in a rank's memory.
std::vector<std::string> state_names(const TrainingPlan& plan, ir::DataType parameter);

// What a rank keeps between steps, bytes.
struct TrainingBytes {
  int64_t parameters = 0;  // trained ones
  int64_t gradients = 0;   // as they leave the step
  int64_t optimizer_state = 0;
  int64_t gradient_sums = 0;  // of micro-batches, while these are accumulated
};
TrainingBytes training_bytes(const TrainingPlan& plan, int64_t rank);

}  // namespace autosp::transforms
