// Whole arrays by parameter's name, and the flat shards of buckets that ranks hold instead.
#pragma once

#include <functional>
#include <string>

#include "executor/communicator.h"
#include "executor/npz.h"
#include "onnx/manifest.h"
#include "transforms/training/training_plan.h"

namespace autosp::cli {

// What a manifest says of training. Throws Error when it says nothing, or what this program does
// not know; `folder` is named in messages.
transforms::TrainingPlan training_plan(const onnx_io::Manifest& manifest,
                                       const std::string& folder);

// Whether ranks hold shards of this parameter instead of all of it.
bool is_shared_out(const onnx_io::Manifest& manifest, const std::string& parameter);

// The array of a parameter, by its name.
using WholeArray = std::function<const ir::Tensor&(const std::string&)>;

// The elements of a bucket that a rank holds.
ir::Tensor shard_of(const transforms::TrainingPlan& plan, const transforms::Bucket& bucket,
                    int64_t rank, const WholeArray& whole);

// All elements of a bucket as arrays of its parameters, named by `name_of`.
void cut_bucket(const transforms::TrainingPlan& plan, const transforms::Bucket& bucket,
                const ir::Tensor& flat,
                const std::function<std::string(const transforms::TrainedParameter&)>& name_of,
                executor::Arrays& arrays);

// All ranks call these together. Every rank gets all elements of the bucket; `what` names the
// exchange in errors.
ir::Tensor gather_shards(const transforms::Bucket& bucket, const ir::Tensor& shard,
                         const std::string& what, executor::Communicator& communicator);
ir::Tensor sum_terms(const ir::Tensor& terms, const std::string& what,
                     executor::Communicator& communicator);

// The gradients of a step by their names, from what the ranks' graphs give: of all ranks, in rank
// order. At zero 0 they are there already.
void name_gradients(const onnx_io::Manifest& manifest, std::vector<executor::Arrays*> outputs);
// The same where every rank knows its own only; all call it together.
void name_gradients(const onnx_io::Manifest& manifest, executor::Arrays& outputs,
                    executor::Communicator& communicator);

}  // namespace autosp::cli
