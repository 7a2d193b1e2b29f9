// What a report tells, as plain data: measured by one run (report_collect.h), kept as JSON
// (report_json.h), shown as a page (report_html.h). Times are in seconds, sizes in bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace autosp::cli {

struct ReportBucket {
  std::string name;
  int64_t bytes = 0;
};

struct ReportRank {
  int64_t rank = 0;
  std::optional<double> loss;
  double step_seconds = 0;           // from its first kernel to its last
  double compute_seconds = 0;        // in kernels
  double communication_seconds = 0;  // in collectives
  double waiting_seconds = 0;        // of those: until the last member had come
  double exposed_seconds = 0;        // of those: while this rank computed nothing
  int64_t collectives = 0;
  int64_t bytes_sent = 0;
  int64_t peak_bytes = 0;             // predicted: the arena, and what lies outside it
  int64_t planned_peak_bytes = 0;     // the arena
  int64_t measured_peak_bytes = 0;    // what of the arena came into use, and messages
  std::vector<ReportBucket> buckets;  // of peak_bytes
};

// Collectives of a kind, as many as one rank takes part in. `layer` counts attentions from 1; 0:
// of none.
struct ReportCollectives {
  int64_t layer = 0;
  std::string phase;
  std::string purpose;
  std::string kind;
  int64_t count = 0;
  int64_t bytes = 0;   // that a rank sends
  double seconds = 0;  // on average over the ranks
};

// The predicted memory of one rank while its nodes run, one after the other.
struct ReportMemory {
  int64_t rank = 0;
  int64_t nodes = 0;
  int64_t backward_from = 0;  // the first node of the backward pass; `nodes` when there is none
  int64_t outside_bytes = 0;  // parameters and inputs
  int64_t planned_bytes = 0;  // those and the arena
  int64_t stride = 1;         // nodes that a point stands for, by the one at which most is live
  std::vector<int64_t> at;    // the first of them, ascending
  std::vector<std::string> buckets;
  std::vector<std::vector<int64_t>> bytes;  // by bucket, then by position
};

// A stretch of a rank's time line: "forward", "backward", "recompute", "waiting" or "transfer".
struct ReportSegment {
  int64_t rank = 0;
  std::string kind;
  double start = 0;  // since the first rank began
  double duration = 0;
  double exposed_seconds = 0;  // of it, in collectives while the rank computes nothing
  int64_t nodes = 1;
  std::string label;  // the node, or the first of several
};

struct ReportTimeline {
  double seconds = 0;
  bool merged = false;  // segments stand for what happened in columns of equal width
  std::vector<ReportSegment> segments;
};

// All nodes of an operator, on all ranks.
struct ReportOperator {
  std::string op;
  std::string family;
  int64_t count = 0;
  double seconds = 0;
  double flops = 0;
  double bytes = 0;
  double attainable_seconds = 0;  // by the device's rates
};

struct ReportDevice {
  std::string name;
  double product = 0;  // operations per second, at the width of this model's floats
  double attention = 0;
  double attention_grad = 0;
  double bandwidth = 0;  // bytes per second
};

struct ReportAttentionRank {
  int64_t rank = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t row = 0;      // which part of the heads it has
  int64_t column = 0;   // which part of the queries
  int64_t replica = 0;  // which part of the batch
  int64_t tokens = 0;   // outside attention: positions of the sequence
};

// One attention layer, whole and as ranks hold it.
struct ReportLayers {
  int64_t count = 0;      // 0: no attention was found, or it is not fused
  bool alike = true;      // all have the collectives of the first
  int64_t batch = 0;      // sequences
  int64_t positions = 0;  // of each
  int64_t heads = 0;
  std::vector<ReportAttentionRank> ranks;
  std::vector<ReportCollectives> before;  // of the first layer: queries, keys, values, gradients
  std::vector<ReportCollectives> after;   // of its output, and of the gradient of that
};

struct ReportOutput {
  std::string name;
  std::string role;
  double relative_error = 0;
  double absolute_error = 0;
  double tolerance = 0;
  int64_t rank = 0;  // that is furthest off
  std::string verdict;
};

// The comparison with the whole model.
struct ReportValidation {
  bool equal = false;
  double largest_relative_error = 0;
  std::vector<ReportOutput> outputs;  // the loss, then by falling error
};

// One step of the whole model on one rank, predicted; nothing runs.
struct ReportUnsharded {
  std::string recompute;
  int64_t peak_bytes = 0;
  std::vector<ReportBucket> buckets;
};

struct ReportAxis {
  std::string name;
  int64_t size = 1;
};

struct ReportData {
  std::string tool_version;
  std::string folder;
  std::string model;
  std::string feed;  // "" when inputs were generated
  std::vector<ReportAxis> mesh;
  std::string recompute;
  std::optional<int64_t> tokens;  // of the whole batch
  int64_t threads_per_rank = 1;
  int64_t steps = 1;  // that ran; the last is told
  double step_seconds = 0;
  std::vector<ReportRank> ranks;
  std::vector<ReportCollectives> collectives;
  ReportMemory memory;
  ReportTimeline timeline;
  ReportDevice device;
  std::vector<ReportOperator> operators;  // by falling time
  ReportLayers layers;
  std::optional<ReportUnsharded> unsharded;
  std::string unsharded_reason;  // why it is not known
  std::optional<ReportValidation> validation;
  std::vector<std::string> warnings;  // of the manifest
};

}  // namespace autosp::cli
