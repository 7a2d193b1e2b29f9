// Facts about a program's forward pass that decide what to keep of it. Private to this folder.
#pragma once

#include <cstdint>
#include <vector>

#include "transforms/spmd/program.h"

namespace autosp::transforms {

class ForwardPass {
 public:
  explicit ForwardPass(const SpmdProgram& program);

  const SpmdProgram& program() const { return *program_; }
  const std::vector<Instruction>& instructions() const { return program_->instructions; }
  bool is_forward(size_t k) const { return phase_of(instructions()[k]) == Phase::kForward; }
  const ir::Node* node(size_t k) const;  // null for moves

  // Of a value, on the rank that holds most of it.
  int64_t bytes(PlacedId id) const { return bytes_[id.index()]; }
  // The instruction that makes a value, or -1: inputs and constants.
  int producer(PlacedId id) const { return producer_[id.index()]; }
  const std::vector<size_t>& readers(PlacedId id) const { return readers_[id.index()]; }
  // The value whose bytes these are: views share their operand's.
  PlacedId storage(PlacedId id) const { return storage_[id.index()]; }
  bool is_view(size_t k) const { return is_view_[k]; }

  // Results of forward instructions that a backward instruction reads.
  const std::vector<PlacedId>& wanted() const { return wanted_; }
  bool is_output(PlacedId id) const { return is_output_[id.index()]; }

  // What a value depends on. Activations depend on data and parameters.
  bool depends_on_data(PlacedId id) const { return on_data_[id.index()]; }
  bool depends_on_parameters(PlacedId id) const { return on_parameters_[id.index()]; }
  bool depends_on_draws(PlacedId id) const { return on_draws_[id.index()]; }
  bool is_activation(PlacedId id) const { return depends_on_data(id) && depends_on_parameters(id); }

  // Attention: the fused operator, or products that make or read a value with two sequence
  // dimensions.
  bool is_attention(size_t k) const { return is_attention_[k]; }
  // Of those, the ones whose results are attention's results.
  bool makes_attention_output(size_t k) const { return makes_attention_output_[k]; }

  // Whether something is chosen by comparing its results, or by itself (TopK). A copy that is
  // executed in other shapes (of a tile) may differ in the last bit: then no element would be equal
  // to the maximum, or another one the largest.
  bool is_decisive(size_t k) const { return is_decisive_[k]; }

  // Storages that are alone alive at some point of the forward pass: the last of them before each
  // attention, and the last layer's output.
  const std::vector<PlacedId>& layer_inputs() const { return layer_inputs_; }
  // The first forward instruction after the last layer's output.
  size_t tail() const { return tail_; }

  // Instructions between this one and the backward pass, at least 1.
  int distance(size_t k) const { return distance_[k]; }

 private:
  void measure();
  void find_storages();
  void find_dependences();
  void find_attention();
  void find_decisive();
  void find_layers();
  void find_distances();

  struct Articulation {
    PlacedId storage;
    size_t made = 0;  // the instruction that makes it
  };
  std::vector<Articulation> articulations() const;

  const SpmdProgram* program_;
  std::vector<int64_t> bytes_;
  std::vector<int> producer_;
  std::vector<std::vector<size_t>> readers_;
  std::vector<PlacedId> storage_;
  std::vector<bool> is_view_;
  std::vector<PlacedId> wanted_;
  std::vector<bool> is_output_;
  std::vector<bool> on_data_;
  std::vector<bool> on_parameters_;
  std::vector<bool> on_draws_;
  std::vector<bool> is_attention_;
  std::vector<bool> makes_attention_output_;
  std::vector<bool> is_decisive_;
  std::vector<PlacedId> layer_inputs_;
  size_t tail_ = 0;
  std::vector<int> distance_;
};

}  // namespace autosp::transforms
