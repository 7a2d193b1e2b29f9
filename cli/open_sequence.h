// shard --dim NAME=dynamic: one set of graphs for every length of the sequence.
//
// Decisions (layouts, what is recomputed, tiles) are made at one length. The same decisions at
// several lengths give graphs that differ in numbers alone, which join_lengths turns into
// arithmetic on the length. What has been written is then read back at every one of these lengths
// and compared with the graph of that length, node by node and number by number.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model_arguments.h"
#include "recompute_arguments.h"
#include "sharded_folder.h"
#include "transforms/open_length/length_form.h"

namespace autosp::cli {

struct OpenDim {
  std::string name;
  std::optional<int64_t> planned;  // the length to plan for; chosen when left out
};

// Takes NAME=dynamic or NAME=dynamic:LENGTH out of --dim; nothing where there is none. Throws Error
// for a second one.
std::optional<OpenDim> take_open_dim(ModelArguments& arguments);

struct OpenArguments {
  ModelArguments model;  // without the open dimension
  PassArguments passes;
  PlanArguments plan;
  RecomputeArguments recompute;
  std::string device;
  OpenDim dim;
  std::set<Dialect> dialects;
};

// A model sharded at several lengths, with one set of decisions.
class OpenSharding {
 public:
  // Throws Error when no length, or too few, can be sharded so; names the node where graphs of two
  // lengths differ by more than numbers that follow from the length.
  explicit OpenSharding(OpenArguments arguments);
  ~OpenSharding();

  // At the length that was planned for.
  const LoadedModel& model() const;
  const shard::Plan& plan() const;
  // With the lengths that are allowed.
  const onnx_io::Manifest& manifest() const { return manifest_; }

  // The graph of a rank, or of all (see dialect_graph), for all lengths.
  WrittenGraph graph(Dialect dialect, int64_t rank) const;

 private:
  struct AtLength;

  void decide(int64_t length);
  bool joins(int64_t units) const;
  std::unique_ptr<AtLength> at(int64_t length) const;
  bool takes(int64_t length) const;
  void choose_lengths(int64_t known);
  void find_longest(int64_t known);
  void find_shortest();
  void add(int64_t units);
  ir::Graph graph_at(const AtLength& at, Dialect dialect, int64_t rank) const;
  void check_joins(const std::vector<const AtLength*>& lengths) const;
  void make_open_manifest();

  OpenArguments arguments_;
  transforms::OpenLength open_;
  std::unique_ptr<AtLength> decided_;
  std::optional<RecomputedProgram> recomputed_;
  std::vector<std::unique_ptr<AtLength>> lengths_;  // the planned one first
  int64_t longest_ = 0;                             // in units; 0: none is known
  int64_t shortest_ = 0;                            // in units
  onnx_io::Manifest manifest_;
};

}  // namespace autosp::cli
