#include "executor/kept_values.h"

namespace autosp::executor {

namespace {

// Null where the turn has no such input.
const ir::Type* input_type(const Turn& turn, const std::string& name) {
  const auto id = turn.graph->find(name);
  const bool is_input = id && turn.graph->value(*id).kind == ir::ValueKind::kInput;
  return is_input ? &turn.graph->type(*id) : nullptr;
}

}  // namespace

KeptValues::KeptValues(const std::vector<Turn>& turns) {
  std::map<std::string, ir::Type> types;
  for (size_t k = 0; k < turns.size(); ++k) {
    for (const std::string& name : turns[k].kept) {
      const ir::Type* type = input_type(turns[k], name);
      AUTOSP_CHECK(type != nullptr, "there is no input '{}' to keep", name);
      const ir::Type& known = types.try_emplace(name, *type).first->second;
      AUTOSP_CHECK(known == *type, "input '{}' is {} and {}", name, ir::to_string(known),
                   ir::to_string(*type));
      Value& value = values_.try_emplace(name).first->second;
      value.bytes = type->num_bytes();
      if (value.first_reader < 0) value.first_reader = static_cast<int>(k);
      value.last_reader = static_cast<int>(k);
    }
  }
  std::map<std::string, int> writers;
  for (size_t k = 0; k < turns.size(); ++k) {
    for (const ir::Output& output : turns[k].graph->outputs()) {
      const auto keep = turns[k].keeps.find(output.name);
      if (keep == turns[k].keeps.end()) continue;
      const std::string& name = keep->second;
      const ir::Type& type = turns[k].graph->type(output.value);
      AUTOSP_CHECK(types.contains(name), "no program has an input '{}'", name);
      AUTOSP_CHECK(types.at(name) == type, "'{}' is {}, not {}", name, ir::to_string(type),
                   ir::to_string(types.at(name)));
      ++writers[name];
      values_.at(name).writer = static_cast<int>(k);
    }
  }
  for (auto& [name, value] : values_) {
    value.passed_on = writers[name] == 1 && value.writer < value.first_reader;
  }
}

std::vector<std::string> KeptValues::passing(int turn) const {
  std::vector<std::string> names;
  for (const auto& [name, value] : values_) {
    if (value.passed_on && value.writer < turn && turn <= value.last_reader) names.push_back(name);
  }
  return names;
}

std::set<std::string> KeptValues::gone_after(int turn) const {
  std::set<std::string> names;
  for (const auto& [name, value] : values_) {
    const bool is_there = value.writer <= turn && turn < value.last_reader;
    if (value.passed_on && !is_there) names.insert(name);
  }
  return names;
}

int64_t KeptValues::place_from(int64_t begin) {
  constexpr int64_t kAlignment = 256;  // what device libraries' fastest kernels ask for
  int64_t end = begin;
  for (auto& [name, value] : values_) {
    if (value.passed_on) continue;
    value.offset = (end + kAlignment - 1) / kAlignment * kAlignment;
    end = value.offset + value.bytes;
  }
  return end;
}

}  // namespace autosp::executor
