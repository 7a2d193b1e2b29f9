#include "executor/arena_session.h"

#include "executor/step_records.h"

namespace autosp::executor {

void ArenaSession::keep(const std::string& name, const ir::Tensor& value) {
  values_.set(name, value.type());
  put(name, value);
}

void ArenaSession::keep_zeros(const std::string& name) {
  const auto& [type, offset] = values_.at(name);
  values_.set(name, type);
  if (type.num_bytes() > 0) clear(offset, type.num_bytes());
}

ir::Tensor ArenaSession::kept(const std::string& name) {
  const auto& [type, offset] = values_.existing(name);
  ir::Tensor tensor(type);
  const auto bytes = static_cast<size_t>(type.num_bytes());
  if (bytes > 0) read(offset, {tensor.mutable_bytes(), bytes});
  return tensor;
}

int64_t ArenaSession::kept_bytes(const std::string& name) const {
  return values_.exists(name) ? values_.at(name).type.num_bytes() : 0;
}

RankResult ArenaSession::run(const Program& program, const Arrays& feeds) {
  check_feeds(program.graph(), feeds, values_.inputs_of(program));
  values_.forget_before(program);
  RankResult result = run_program(
      program, feeds, [&](const ir::Output& output) { return values_.gives_out(program, output); });
  for (const auto& [from, to, bytes] : values_.copies(program)) {
    if (bytes > 0) copy(from, to, bytes);
  }
  for (const auto& [output, name] : program.kept_outputs()) {
    const auto given = result.outputs.extract(output);
    if (!given.empty()) put(name, given.mapped());
  }
  values_.set_after(program);
  return result;
}

void ArenaSession::put(const std::string& name, const ir::Tensor& value) {
  if (!value.bytes().empty()) write(values_.at(name).offset, value.bytes());
}

}  // namespace autosp::executor
