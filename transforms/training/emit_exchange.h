// One rank's part of an exchange: the nodes that go between those of the program.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ir/builder.h"
#include "transforms/training/exchange.h"

namespace autosp::transforms {

class ExchangeEmitter {
 public:
  // `local` gives the rank's value of a placed one, `define` takes it.
  ExchangeEmitter(const SpmdProgram& program, int64_t rank, std::function<ValueId(PlacedId)> local,
                  std::function<void(PlacedId, ValueId)> define, ir::Builder& build);

  // Whether this graph input comes as a part of a shard instead.
  bool shards_input(PlacedId input) const;
  void add_shards();

  bool replaces(size_t instruction) const;
  // What goes before and after an instruction of the program. Of a tile loop: before its first
  // instruction, after its last.
  void before(size_t instruction);
  void after(size_t instruction);

  // Whether this output of the program leaves the graph as a part of a bucket instead.
  bool carries_output(size_t output) const;
  void add_bucket_outputs();

 private:
  ValueId term(size_t parameter);
  ValueId flat_terms(const Bucket& bucket);
  void send(size_t bucket);
  void gather(size_t bucket, size_t instruction);
  ValueId collective(const std::string& op, ValueId x, const Bucket& bucket, int64_t elements,
                     const std::string& name);
  void set_phase(size_t first_node, Phase phase);

  const SpmdProgram& program_;
  const Exchange* exchange_;  // null: nothing to do
  int64_t rank_;
  std::function<ValueId(PlacedId)> local_;
  std::function<void(PlacedId, ValueId)> define_;
  ir::Builder& build_;
  std::vector<ValueId> shards_;            // by bucket, at zero 3
  std::vector<ValueId> bucket_gradients_;  // by bucket, from zero 1 on
};

// What ExchangeEmitter sends, for lists of collectives. `bytes` is what the rank sends that sends
// most.
struct ExchangeRecord {
  std::string node;
  StepKind kind = StepKind::kAllReduce;
  std::string value;
  int64_t bytes = 0;
  Phase phase = Phase::kBackward;
  Purpose purpose = Purpose::kGradient;
};
std::vector<ExchangeRecord> records_before(const SpmdProgram& program, size_t instruction);
std::vector<ExchangeRecord> records_after(const SpmdProgram& program, size_t instruction);
bool is_replaced(const SpmdProgram& program, size_t instruction);

}  // namespace autosp::transforms
