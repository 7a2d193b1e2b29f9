// Collectives whose numbers are an operand, because they depend on the length of the sequence: once
// it is known, they are attributes like anyone's.
#include "ir/collective_numbers.h"
#include "onnx/normal_form_rules.h"

namespace autosp::onnx_io {

namespace {

void take_open_numbers(Emitter& emitter, Operation& operation) {
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

// A ReduceScatter of an open length says whose part its result is: with the sizes known, that is
// the type that value_info would state, had it a number.
void take_member(Emitter& emitter, Operation& operation) {
  if (!operation.attributes.has("member")) return;
  const int64_t member = operation.attributes.get_int("member", 0);
  const auto axis = static_cast<size_t>(operation.attributes.get_int("axis", 0));
  const std::vector<int64_t> sizes = operation.attributes.get_ints("sizes");
  ir::Type type = emitter.graph().type(operand(operation, 0));
  if (member < 0 || static_cast<size_t>(member) >= sizes.size() || axis >= type.rank()) {
    throw Error("node '{}' is of member {} of {}, along axis {} of {}", operation.describe(),
                member, sizes.size(), axis, ir::to_string(type))
        .help("the rank graph is damaged: shard the model again");
  }
  type.shape[axis] = sizes[static_cast<size_t>(member)];
  operation.declared.resize(1);
  operation.declared[0] = std::move(type);
  operation.attributes.erase("member");
}

}  // namespace

void take_collective_numbers(Emitter& emitter, Operation& operation) {
  if (ir::collective_lists(operation.op).empty()) return;
  if (operation.input(2)) take_open_numbers(emitter, operation);
  take_member(emitter, operation);
}

}  // namespace autosp::onnx_io
