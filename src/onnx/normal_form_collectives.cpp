// Collectives whose numbers are an operand, because they depend on the length of the sequence: once
// it is known, they are attributes like anyone's.
#include "ir/collective_numbers.h"
#include "onnx/normal_form_rules.h"

namespace autosp::onnx_io {

void take_collective_numbers(Emitter& emitter, Operation& operation) {
  if (ir::collective_lists(operation.op).empty() || !operation.input(2)) return;
  const auto numbers = emitter.graph().constant_ints(operation.inputs[2]);
  if (!numbers) {
    throw Error("node '{}' takes the sizes of what it exchanges from '{}', which is not known",
                operation.describe(), emitter.graph().name_of(operation.inputs[2]))
        .note("they may depend on the length of the sequence, not on data")
        .help("the rank graph is damaged: shard the model again");
  }
  ir::set_collective_lists(operation.op, *numbers, emitter.rank(operand(operation, 0)),
                           fmt::format("node '{}'", operation.describe()), operation.attributes);
  operation.inputs.resize(1);
}

}  // namespace autosp::onnx_io
