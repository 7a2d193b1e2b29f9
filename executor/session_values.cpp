#include "executor/session_values.h"

namespace autosp::executor {

namespace {

int64_t offset_of(const Program& program, ValueId id) {
  return program.buffers()[static_cast<size_t>(program.place(id).buffer)].offset;
}

bool lies_in_arena(const Program& program, ValueId id) {
  return program.place(id).storage == Storage::kArena;
}

// In the arena, but not where a value is kept for good.
bool is_result(const Program& program, ValueId id) {
  if (!lies_in_arena(program, id)) return false;
  const ArenaBuffer& buffer = program.buffers()[static_cast<size_t>(program.place(id).buffer)];
  return buffer.placing != ArenaBuffer::Placing::kApart;
}

}  // namespace

SessionValues::SessionValues(const std::vector<const Program*>& programs) {
  for (const Program* program : programs) {
    const ir::Graph& graph = program->graph();
    for (ValueId input : graph.inputs()) {
      if (!lies_in_arena(*program, input)) continue;
      values_[graph.name_of(input)] = {graph.type(input), offset_of(*program, input)};
    }
  }
}

const SessionValues::Value& SessionValues::at(const std::string& name) const {
  const auto found = values_.find(name);
  AUTOSP_CHECK(found != values_.end(), "no program keeps an input '{}'", name);
  return found->second;
}

const SessionValues::Value& SessionValues::existing(const std::string& name) const {
  AUTOSP_CHECK(exists(name), "nothing is kept as '{}'", name);
  return at(name);
}

std::set<std::string> SessionValues::inputs_of(const Program& program) const {
  std::set<std::string> names;
  for (ValueId input : program.graph().inputs()) {
    const std::string& name = program.graph().name_of(input);
    if (!lies_in_arena(program, input)) continue;
    existing(name);
    names.insert(name);
  }
  return names;
}

void SessionValues::set(const std::string& name, const ir::Type& type) {
  const ir::Type& known = at(name).type;
  AUTOSP_CHECK(known == type, "'{}' is {}, not {}", name, ir::to_string(type),
               ir::to_string(known));
  existing_.insert(name);
}

void SessionValues::forget_before(const Program& program) {
  for (const std::string& name : program.gone_after()) existing_.erase(name);
  for (const auto& [output, name] : program.kept_outputs()) existing_.erase(name);
}

void SessionValues::set_after(const Program& program) {
  for (const auto& [output, name] : program.kept_outputs()) existing_.insert(name);
}

std::vector<SessionValues::Copy> SessionValues::copies(const Program& program) const {
  std::vector<Copy> copies;
  for (const ir::Output& output : program.graph().outputs()) {
    const auto keep = program.kept_outputs().find(output.name);
    if (keep == program.kept_outputs().end() || !is_result(program, output.value)) continue;
    const Copy copy{offset_of(program, output.value), at(keep->second).offset,
                    program.graph().type(output.value).num_bytes()};
    if (copy.from != copy.to) copies.push_back(copy);
  }
  return copies;
}

bool SessionValues::gives_out(const Program& program, const ir::Output& output) const {
  const auto keep = program.kept_outputs().find(output.name);
  if (keep == program.kept_outputs().end()) return true;
  if (is_result(program, output.value)) return false;
  return !lies_in_arena(program, output.value) ||
         offset_of(program, output.value) != at(keep->second).offset;
}

}  // namespace autosp::executor
